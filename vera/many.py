"""Many VeRA adapters at once: one frozen base model, and a batch in which every sample names its adapter.

An adapter is its vectors and no more: all share the base weights, A and B. A batch takes the factor path with b and d of
its own for each sample, whose cost does not depend on how many adapters are resident.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vera.checkpoint import FORMAT, HEAD_FORMAT, base_fingerprint, check_tensors, read_file, same_base
from vera.errors import AdapterError
from vera.kernels import quicken
from vera.methods import disable, make_method
from vera.methods.base import adaptation, changes, plain_names, remove_hooks, unload
from vera.methods.vera import VeRA, VeRAChange
from vera.sites import head_parameters, head_prefixes

Names = Sequence[str | None]


class Adapters:
    """The adapters that are resident on a base model, which stays as it is where no adapter is named.

    adapters = Adapters(model)
    adapters.add("alice", "alice.safetensors", head="alice_head.safetensors")
    adapters.add("bob", "bob.safetensors")
    model(**batch, adapter_names=["alice", "bob", None])     # one name a sample; None: the base model
    with adapters.use(["alice", "bob"]):
        model.generate(**batch)

    They must agree in their settings (rank, sites, projections), since they share A and B; dropout and the start of d do
    not matter. The model answers one call at a time. It is adapted when the first adapter comes; `unload` undoes that.
    """

    def __init__(self, model: nn.Module) -> None:
        """Raises AdapterError where the model carries an adapter of its own."""
        if adaptation(model):
            raise AdapterError("this model carries an adapter: its base model takes many (vera.unload)")
        self.model = model
        self.method: VeRA | None = None
        self.vectors: dict[str, Tensor] = {}
        self.heads: dict[str, dict[str, Tensor]] = {}
        self._parameters: dict[str, Tensor] = {}  # of the adapted model, by the file's names
        self._fixed: dict[str, Any] = {}
        self._base: dict[str, str] = {}
        self._names: Names | None = None  # of the call, or of `use`
        self._rows: Tensor | None = None
        self._used: Names | None = None

    # --- who is there

    def __len__(self) -> int:
        return len(self.vectors)

    def __contains__(self, name: object) -> bool:
        return name in self.vectors

    def __iter__(self) -> Iterator[str]:
        return iter(self.vectors)

    def add(self, name: str, path: str | Path, head: str | Path | None = None) -> None:
        """Makes an adapter file resident, with a head of its own where `head` names that file.

        Raises AdapterError, with nothing changed, where the name is taken, a file is damaged or does not fit the model,
        or the adapter's settings differ from those of the adapters here.
        """
        if name in self.vectors:
            raise AdapterError(f"there is an adapter {name!r} already: remove it first")
        header, tensors = read_file(path, FORMAT)
        method = make_method(**header["method"])
        if not isinstance(method, VeRA):
            raise AdapterError(f"{path}: a {method.kind} adapter; only VeRA's share their projections")
        if self.method is None:
            self._adapt(method)
        try:
            self._check(path, method, header, tensors)
            heads = self._head(head) if head else None
        except AdapterError:
            if not self.vectors:
                self.unload()
            raise
        self.vectors[name] = torch.cat([tensors[n].flatten().to(p) for n, p in self._parameters.items()])
        if heads:
            self.heads[name] = heads

    def remove(self, name: str) -> None:
        """Raises AdapterError for an unknown name."""
        self._known([name])
        del self.vectors[name]
        self.heads.pop(name, None)

    def unload(self) -> None:
        """Forgets every adapter; the model is the plain base model again."""
        self.vectors.clear()
        self.heads.clear()
        self.method = None
        quicken(self.model, False)
        for module in self.model.modules():
            remove_hooks(module, Adapters._begin, Adapters._end, Adapters._own_heads)
        unload(self.model)

    # --- a call

    @contextmanager
    def use(self, names: Names) -> Iterator[None]:
        """Within it every call of the model is for samples of these adapters, also those that `generate` makes.

        A batch that is a multiple of the names (beams) repeats each name. Raises AdapterError for an unknown name.
        """
        self._known(names)
        before, self._used = self._used, list(names)
        try:
            yield
        finally:
            self._used = before

    def _begin(self, model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """The model's forward pre-hook: sets b and d of each sample, and takes `adapter_names` away."""
        keywords = dict(keywords)
        names = keywords.pop("adapter_names", None)
        exact = names is not None
        names = self._used if names is None else names
        if names is None:
            return arguments, keywords
        self._known(names)
        samples = next((len(v) for v in (*arguments, *keywords.values()) if isinstance(v, Tensor) and v.dim()), 0)
        times, rest = divmod(samples, max(len(names), 1))
        if rest or not times or (exact and times > 1):
            raise AdapterError(f"{len(names)} adapter names for {samples} samples: each sample needs one")
        names = [name for name in names for _ in range(times)]
        if not any(name is not None for name in names):
            return arguments, keywords
        zero = torch.zeros_like(next(iter(self.vectors.values())))
        rows = torch.stack([zero if name is None else self.vectors[name] for name in names])
        start = 0
        for change in self._changes():
            vectors = []
            for vector in (change.b, change.d):
                size = 0 if vector is None else len(vector)
                vectors.append(rows[:, start : start + size] if size else None)
                start += size
            change.rows = (vectors[0], vectors[1])
        self._names = names
        disable(self.model, False)
        return arguments, keywords

    def _end(self, model: nn.Module, arguments: Any, result: Any) -> None:
        """The model's forward hook: between two calls it is the base model."""
        self._names = None
        for change in self._changes():
            change.rows = None
        disable(self.model)

    def _own_heads(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        """The forward hook of a head: computes anew what belongs to adapters with heads of their own."""
        if self._names is None or not isinstance(output, Tensor):
            return output
        prefix: str = module.__dict__["_head_prefix"]
        for name in {n for n in self._names if n in self.heads}:
            at = torch.tensor([i for i, n in enumerate(self._names) if n == name], device=output.device)
            own = {n.removeprefix(prefix): v for n, v in self.heads[name].items() if n.startswith(prefix)}
            mine = tuple(a[at] if isinstance(a, Tensor) else a for a in arguments)
            hooks, module._forward_hooks = module._forward_hooks, type(module._forward_hooks)()
            try:
                output = output.index_copy(0, at, functional_call(module, own, mine))
            finally:
                module._forward_hooks = hooks
        return output

    # --- inside

    def _adapt(self, method: VeRA) -> None:
        self._base = base_fingerprint(self.model)
        method.adapt(self.model)
        self.model.requires_grad_(False)
        quicken(self.model)
        self.model.register_forward_pre_hook(self._begin, with_kwargs=True, prepend=True)
        self.model.register_forward_hook(self._end, always_call=True)
        for prefix in head_prefixes(self.model):
            if prefix.rstrip(".") in dict(self.model.named_modules()):
                module = self.model.get_submodule(prefix[:-1])
                module.__dict__["_head_prefix"] = prefix
                module.register_forward_hook(self._own_heads)
        plain = plain_names(self.model)
        names = {id(p): plain[name] for name, p in self.model.named_parameters()}
        vectors = (v for change in self._changes() for v in (change.b, change.d) if v is not None)
        self._parameters = {names[id(v)]: v for v in vectors}
        self.method, self._fixed = method, method.fixed(self.model)
        disable(self.model)

    def _changes(self) -> Iterator[VeRAChange]:
        return cast(Iterator[VeRAChange], changes(self.model))

    def _check(self, path: str | Path, method: VeRA, header: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
        assert self.method is not None
        theirs, ours = method.settings(), self.method.settings()
        for key in sorted({*theirs, *ours} - {"dropout", "d_init"}):
            if theirs.get(key) != ours.get(key):
                raise AdapterError(
                    f"{path}: its {key} is {theirs.get(key)}, that of the adapters here is {ours.get(key)}: "
                    "adapters that share a batch share A and B"
                )
        if header.get("fixed") != self._fixed:
            raise AdapterError(f"{path}: was trained with other projections than this model's")
        check_tensors(path, self._parameters, tensors)
        if not same_base(header.get("base"), self._base):
            raise AdapterError(f"{path}: trained on other base weights than this model's")

    def _head(self, path: str | Path) -> dict[str, Tensor]:
        wanted: dict[str, Tensor] = dict(head_parameters(self.model))
        tensors = read_file(path, HEAD_FORMAT)[1]
        check_tensors(path, wanted, tensors, "Same number of labels?")
        return {name: tensor.to(wanted[name]) for name, tensor in tensors.items()}

    def _known(self, names: Names) -> None:
        for name in names:
            if name is not None and name not in self.vectors:
                near = get_close_matches(str(name), self.vectors, 1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise AdapterError(f"no adapter {name!r} among the {len(self)} here.{hint}")
