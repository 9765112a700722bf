// Opens every drawer of the report, visits 200 places, types into each filter.
const done = arguments[0];
(async () => {
  const pause = () => new Promise(go => setTimeout(go, 5));
  const all = [...document.querySelectorAll('[id]')], step = Math.ceil(all.length / 200);
  const places = all.filter((_, i) => i % step === 0);
  for (const place of places) { location.hash = place.id; await pause(); }
  for (const details of document.querySelectorAll('details')) details.open = true;
  for (const field of document.querySelectorAll('[data-filter]')) for (const words of ['vera', '<b>', '']) {
    field.value = words; field.dispatchEvent(new Event('input', {bubbles: true})); await pause(); }
  dispatchEvent(new Event('beforeprint'));
  const strangers = document.querySelectorAll('img[src=x], svg[onload], iframe, base').length;
  done([places.length, window.ran || 0, strangers]);
})();
