"""Methods of somebody's own: their kind, their file, their settings, and what of them
cannot be merged."""

from dataclasses import dataclass
from typing import Optional

import pytest
import torch
from support import modules, refused_unchanged
from tiny import answer, shake, tiny, tiny_model
from torch import nn

import vera
from vera.methods.contract import METHODS
from vera.methods.layers import (
    AdaptedLinear,
    Change,
    adapted_layers,
    base_weight,
    layer_changes,
    wrap,
)
from vera.methods.ssf import scale_and_shift
from vera.sites import find_sites

pytestmark = pytest.mark.contract


@pytest.fixture(autouse=True)
def registry():
    """The kinds that are known: as before, after each test."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


@pytest.fixture
def method(registry):
    class Mine(vera.LoRA, kind="mine"):
        """Without settings of its own."""

    return Mine(4)


def test_weights_that_cannot_be_unpacked_are_refused():
    whole = nn.Linear(4, 4)
    whole.weight = nn.Parameter(whole.weight.to(torch.int8), requires_grad=False)
    with refused_unchanged("cannot be unpacked"):
        base_weight(whole)


def test_a_method_that_refuses_half_way_leaves_no_hook(method, monkeypatch):
    def install(self, model):
        for module in model.modules():
            module.register_forward_hook(lambda *_: None)
            module.register_forward_pre_hook(lambda *_: None)
        raise vera.AdapterError("no further")

    monkeypatch.setattr(type(method), "install", install)
    with refused_unchanged("no further", model := tiny_model("bert")):
        method.adapt(model)


def test_a_kind_that_is_taken_is_refused_and_the_same_class_may_come_again(method):
    lora, ours = METHODS["lora"], METHODS["mine"]
    with refused_unchanged(r"kind 'lora' is taken by vera\.methods\.lora\.LoRA$"):
        type("Mine", (vera.Method,), {}, kind="lora")
    assert METHODS["lora"] is lora
    names = {"__module__": ours.__module__, "__qualname__": ours.__qualname__}
    again = type("Mine", (vera.Method,), names, kind="mine")
    assert METHODS["mine"] is again


def test_a_file_whose_class_nobody_has_imported_names_itself_and_the_class(
    method, tmp_path, monkeypatch
):
    model, path, of = tiny_model(), tmp_path / "own.safetensors", METHODS["mine"]
    method.adapt(model)
    vera.save(model, method, path)
    with monkeypatch.context() as absent:
        absent.delitem(METHODS, "mine")
        with refused_unchanged(f"import {of.__module__}.{of.__qualname__} first"):
            vera.load(tiny_model(), path)
    assert vera.load(tiny_model(), path) == method == vera.make_method("mine", rank=4)


def test_a_settings_type_may_be_written_in_any_way():
    """As in a module with postponed annotations, or of an older Python."""

    @dataclass(frozen=True)
    class Postponed(vera.LoRA, kind="postponed"):
        rank: "Optional[int]" = None  # noqa: UP045
        words: "list[str]" = ()
        odd: "bytes | None" = None

    assert Postponed(rank=3, words=["a"]).words == ("a",)
    for settings, named in (
        ({"rank": "x"}, "rank must be a whole number"),
        ({"odd": b"x"}, "odd: .*bytes"),
    ):
        with refused_unchanged(named):
            Postponed(**settings)


def test_a_class_that_no_dataclass_makes_of_no_known_type_or_not_finished_says_what_it_lacks():
    class NoDataclass(vera.LoRA, kind="no_dataclass"):
        speed: float = 2.0

    @dataclass(frozen=True)
    class Unknown(vera.LoRA, kind="unknown"):
        speed: "Nowhere" = 2.0  # noqa: F821

    @dataclass(frozen=True)
    class NoCount(vera.Method, kind="no_count"):
        def install(self, model):
            pass

    for kind, named in (
        ("no_dataclass", r"@dataclass\(frozen=True\)"),
        ("unknown", "Nowhere"),
    ):
        for settings in ({}, {"speed": 3.0}, {"fast": 3.0}):
            with refused_unchanged(named):
                vera.make_method(kind, rank=4, **settings)
    with refused_unchanged("count"):
        vera.make_method("no_count")


@pytest.mark.parametrize("architecture", ["BERT", "GPT-2"])
def test_what_one_change_adds_inside_the_layer_of_another_leaves_with_it(architecture):
    class Scaled(vera.LoRA, kind="scaled"):
        def install(self, model):
            for path in find_sites(model, self.sites):
                scale_and_shift(model.get_submodule(path))
            super().install(model)

    model, base = tiny(architecture), tiny(architecture)
    method = Scaled(4)
    method.adapt(model)
    assert all(
        ".ssf." in n or n.endswith((".A", ".B"))
        for n in method.adapter_parameters(model)
    )
    vera.unload(model)
    assert modules(model) == modules(base)
    assert torch.equal(answer(model), answer(base))


class Plain(Change):
    """The change of one matrix: the ways in which an author can get it wrong, by
    name."""

    def __init__(self, wrong, base, inputs, outputs):
        super().__init__()
        self.wrong, self.outputs, self.inputs = wrong, outputs, inputs
        if wrong == "module":
            self.base = base
        self.b = torch.zeros(outputs, inputs)
        if wrong != "plain":
            self.b, self.t = nn.Parameter(self.b), nn.Parameter(torch.zeros(outputs))
        #: Neither is a part of the module.
        self.beside, self.dtype_of = (
            (base, torch.full((outputs, 1), 2.0)),
            torch.float32,
        )

    def forward(self, x):
        x = x.to(self.dtype_of) if self.wrong == "dtype" else x
        y = nn.functional.dropout(x, 0.5, self.training) @ self.matrix().T
        wrongs = {
            "forward": y[..., :1],
            "nothing": None,
            "square": y * y,
            "half": y / 2,
            "near": y * 1.05,
        }
        return y + self.t if self.wrong == "shift" else wrongs.get(self.wrong, y)

    def matrix(self):
        base, twice = self.beside
        factor = {"base": base.weight, "tuple": twice}.get(self.wrong)
        return self.b if factor is None else factor * self.b

    def weight(self):
        b = self.matrix()
        return {"weight": b[:, :1], "no weight": None, "transposed": b.T}.get(
            self.wrong, b
        )


def wrong(name, architecture="BERT", site="query", dtype=torch.float32):
    """A model whose changes have something wrong, and its method."""

    @dataclass(frozen=True)
    class Wrong(vera.Method, kind="wrong"):
        def install(self, model):
            targets = find_sites(model, (site,))
            wrap(
                model,
                targets,
                lambda path, part, base, *sizes: Plain(name, base, *sizes),
            )

        def count(self, model):
            return 0

    model = tiny(architecture).to(dtype)
    Wrong().adapt(model)
    return model, Wrong()


# GPT-2's is a slice of a fused projection
@pytest.mark.parametrize("architecture", ["BERT", "GPT-2"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plain", "Plain has no nn.Parameter"),
        # A change of one column would be added to each of them
        (
            "forward",
            r"Plain.forward of \S+\d\.\S+ returns shape \(4, 9, 1\), where \(4, 9, 32\) is",
        ),
        (
            "nothing",
            r"Plain.forward of \S+ returns nothing, where \(4, 9, 32\) is needed",
        ),
    ],
)
def test_a_change_of_the_wrong_shape_is_named_in_the_first_step(
    name, message, architecture
):
    with refused_unchanged(message):
        wrong(name, architecture)[0](torch.randint(3, 30, (4, 9)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "weight",
            r"Plain.weight of \S+ returns shape \(32, 1\), where \(32, 32\) is needed",
        ),
        (
            "no weight",
            r"Plain.weight of \S+ returns nothing, where \(32, 32\) is needed",
        ),
        ("module", r"\(\S+value.base.weight and \S+changes.whole.base.weight\)"),
        *(
            (name, "method wrong")
            for name in ("shift", "square", "half", "near", "transposed")
        ),
        ("a layer", None),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_change_that_cannot_be_merged_leaves_the_weights_alone(
    name, message, dtype, monkeypatch
):
    """Not the first weight either: here one change is wrong, the last; or its layer's
    merge fails."""
    model, method = wrong(name if name == "module" else "", site="value", dtype=dtype)
    shake(model)
    last, real = list(adapted_layers(model))[-1], AdaptedLinear.merge
    last.changes["whole"].wrong = name
    if name == "a layer":
        monkeypatch.setattr(
            AdaptedLinear,
            "merge",
            lambda layer: 1 / 0 if layer is last else real(layer),
        )
    before = {n: p.clone() for n, p in model.named_parameters()}
    for merge in (method.merge, lambda model: vera.unload(model, merge=True)):
        with pytest.raises(
            vera.AdapterError if message else ZeroDivisionError, match=message
        ) as raised:
            merge(model.train())
        assert "\n" not in str(raised.value)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert all(
        layer.changes["whole"].training and not layer.merged
        for layer in adapted_layers(model)
    )


@pytest.mark.parametrize("keeps", ["", "tuple", "dtype", "base"])
def test_a_right_change_is_merged_whatever_it_keeps(keeps):
    """A tensor or the base layer in a tuple, a dtype; and it draws in training."""
    model, method = wrong(keeps)
    shake(model)
    expected = answer(model.eval())
    method.merge(model.train())
    assert torch.allclose(answer(model.eval()), expected, atol=1e-5)


class Kept(Change):
    """W0 + b A: A is frozen; the ways in which an author can get it wrong, by name."""

    def __init__(self, wrong, base, inputs, outputs):
        super().__init__()
        self.wrong, dtype = (
            wrong,
            base.weight.dtype if wrong == "half" else torch.float32,
        )
        generator = torch.Generator().manual_seed(0) if wrong != "file" else None
        self.register_buffer(
            "A", torch.randn(2, inputs, generator=generator), persistent=False
        )
        self.b = nn.Parameter(
            torch.full((outputs, 2), float(wrong == "start"), dtype=dtype)
        )
        self.unused = nn.Parameter(torch.zeros(2, dtype=dtype))

    def forward(self, x):
        y = x @ self.A.T.to(x) @ self.b.T.to(x)
        return y if self.wrong == "gradient" else y + x @ self.extra().T.to(x)

    def extra(self):
        return self.unused.sum() * self.A.mean(0).expand(len(self.b), -1)

    def weight(self):
        whole = self.b.to(self.A) @ self.A + self.extra().to(self.A)
        return 2 * whole if self.wrong == "weight" else whole

    def __deepcopy__(self, memo):
        if self.wrong == "copy" and self.b.any():
            return self
        copied = Kept(
            self.wrong, nn.Linear(1, 1).to(self.b.dtype), self.A.shape[1], len(self.b)
        )
        copied.load_state_dict(self.state_dict())
        copied.A = self.A.clone()
        return copied.to(self.b)


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        *(
            ("", None),
            ("settings", "settings"),
            ("start", r"before any step its outputs differ"),
            ("count", r"count\(\) says 7"),
        ),
        *(
            ("gradient", "no gradient reaches .*unused"),
            ("step", "LayerNorm.*frozen"),
            ("copy", "a copy"),
        ),
        *(
            ("file", "loaded"),
            ("off", "switched off"),
            ("weight", r"weight\(\)"),
            ("half", "float32"),
        ),
        ("unmerge", "unmerged"),
    ],
)
def test_check_finds_each_fault_of_a_method_and_leaves_the_model_alone(fault, named):
    @dataclass(frozen=True)
    class Own(vera.Method, kind="own"):
        size: int = 2

        def settings(self):
            return super().settings() | ({"size": 3} if fault == "settings" else {})

        def install(self, model):
            targets = find_sites(model, ("value",))
            wrap(
                model,
                targets,
                lambda path, part, base, *sizes: Kept(fault, base, *sizes),
            )
            if fault == "off":
                model.register_forward_hook(
                    lambda module, given, output: 2 * output.logits
                )

        def count(self, model):
            return (
                7
                if fault == "count"
                else sum(p.numel() for p in self.adapter_parameters(model).values())
            )

        def after_step(self, model, step):
            if fault == "step":
                next(p for n, p in model.named_parameters() if "LayerNorm" in n).add_(1)

        def unmerge(self, model):
            return None if fault == "unmerge" else super().unmerge(model)

    model = tiny_model()
    if named is None:
        assert vera.check(Own(), model) is True
    else:
        with refused_unchanged(named, model):
            vera.check(Own(), model, start=9.0 if fault == "off" else 1e-3)
    with refused_unchanged("inputs: what is a Linear called with"):
        vera.check(Own(), nn.Linear(2, 2))


class ScaledBase(Change):
    """Scales what a base layer gives, its bias included, which a Change cannot."""

    def __init__(self, base, casts):
        super().__init__()
        self.base = (base,)
        self.casts = casts
        self.g = nn.Parameter(torch.zeros(len(base.weight), dtype=torch.float32))

    def forward(self, x):
        (base,) = self.base
        return self.g * base(x.to(base.weight.dtype) if self.casts else x)

    def weight(self):
        (base,) = self.base
        return self.g[:, None] * base.weight


@pytest.mark.parametrize(
    ("casts", "fault"),
    [
        (True, r"cannot be merged: its forward is not x @ weight\(\)\.T"),
        (False, r"over a model in torch\.float64 the forward pass fails: [^\n]*dtype"),
    ],
)
def test_check_names_a_scaled_bias_and_a_failing_forward_in_one_line(casts, fault):
    """A new BERT has biases of 0, where scaling them would not show."""

    @dataclass(frozen=True)
    class Scaled(vera.Method, kind="scaled_base"):
        def install(self, model):
            targets = find_sites(model, ("query",))
            wrap(model, targets, lambda path, part, base, *_: ScaledBase(base, casts))

        def count(self, model):
            return sum(change.g.numel() for change in layer_changes(model))

    with pytest.raises(vera.AdapterError, match=fault) as caught:
        vera.check(Scaled(), tiny("BERT"))
    assert "\n" not in str(caught.value)
