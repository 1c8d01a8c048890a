"""What the plug-in must know of a model family, and the look-up by class.

An adapter is mostly data. It never decides what is kept.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import Tensor, nn

from vtc.errors import VTCError
from vtc.functional.ragged import cat_views
from vtc.plugins.hf.probe import Record
from vtc.plugins.hf.typing import Model
from vtc.plugins.model.inputs import Inputs
from vtc.plugins.model.positions import POLICIES
from vtc.plugins.model.signals import token_pixels
from vtc.plugins.model.units import Unit, square, uncut
from vtc.registry import put

if TYPE_CHECKING:
    from vtc.methods.base import Method

_ADAPTERS: dict[str, type[Adapter]] = {}
#: class -> package that brings its adapter when a model of it comes
_ELSEWHERE = {"MPLUGDocOwlLlamaForCausalLM": "vtc.plugins.hf.docowl"}
_FALLBACK: list[type[Adapter]] = []
A = TypeVar("A", bound="type[Adapter]")

# Where transformers' models keep the parts of their vision side; the first that exists is taken
_TOWERS = ("vision_tower", "visual", "vision_model", "image_tower")
_LANGUAGE_MODELS = ("language_model", "text_model")
_PROJECTORS = ("multi_modal_projector", "connector", "visual.merger")
_LAYERS = ("encoder.layers", "encoder.layer", "transformer.layers", "blocks")
_NORMS = ("post_layernorm", "layernorm_post", "ln_post")
_ATTENTIONS = ("self_attn", "attention", "attn")


@dataclass
class Call(Inputs):
    """One call of an encoder: what went in, what came out, what the probes saw.

    Attributes:
        base: the inner model.
        output: what the model's own encoder function returned.
        record: what the probes saw.
    """

    base: Model
    output: Any
    record: Record


class Adapter:
    """A model family. `base` is always the inner model, the one with `get_image_features`."""

    #: what a plain forward (not `generate`) adds to a running count of tokens to get positions
    first_position: ClassVar[int] = 0
    #: where tokens can be cut, in the order in which they pass, see `stages.base`
    stages: ClassVar[tuple[str, ...]] = ("pixels", "boundary", "layers")
    #: why they are not cut at other places, where somebody might look for it
    unstaged: ClassVar[str] = ""
    #: whether the tower pads: what `fuse` leaves out is then no part of a token
    pads: ClassVar[bool] = False
    #: how the projector makes fewer tokens of the patches, empty where it maps each by itself
    fuses: ClassVar[str] = ""
    #: whether a layer may attend window by window, so that a tile's patches come in several calls
    windows: ClassVar[bool] = False
    #: whether the tower can be given some of an image's patches, see `only`
    takes_some: ClassVar[bool] = False
    #: whether the model tells a prompt from a step by a cache that nothing was ever put into
    wants_new_cache: ClassVar[bool] = False
    #: the position policies that the model allows
    positions: ClassVar[tuple[str, ...]] = POLICIES

    @property
    def irreplaceable(self) -> str:
        """Why a method cannot put a projector in the place of the model's, empty where it can."""
        return self.fuses

    # -- where things are --------------------------------------------------------------------

    def tower(self, base: Model, modality: str = "image") -> Model:
        """The vision tower."""
        return find(base, _TOWERS, "vision tower")[2]

    def projector(self, base: Model) -> Model | None:
        """The module that maps vision features to the language model's width, where it is needed."""
        return find(base, _PROJECTORS, "projector")[2]

    def layer_list(self, base: Model, modality: str = "image") -> tuple[nn.Module, str]:
        """The module that holds the encoder layers, and the name under which it does."""
        tower = self.tower(base, modality)
        owner, name, _ = find(getattr(tower, "vision_model", tower), _LAYERS, "encoder layers")
        return owner, name

    def layers(self, base: Model, modality: str = "image") -> nn.ModuleList:
        """The encoder layers of the vision tower."""
        owner, name = self.layer_list(base, modality)
        return getattr(owner, name)

    def attention(self, base: Model, layer: int, modality: str = "image") -> nn.Module:
        """The attention module of encoder layer `layer`."""
        return find(self.layers(base, modality)[layer], _ATTENTIONS, "attention")[2]

    def width(self, base: Model) -> int:
        """Width C of the vision tower."""
        config = self.tower(base).config
        return getattr(config, "embed_dim", None) or config.hidden_size

    def side(self, base: Model) -> int:
        """Rows of patches of a square tile, as the tower sees it."""
        config = self.tower(base).config
        return config.image_size // config.patch_size

    def has_cls(self, base: Model) -> bool:
        """Whether the tower puts a CLS token in front of the patches."""
        names = (name.rsplit(".", 1)[-1] for name, _ in self.tower(base).named_parameters())
        return any(name in ("class_embedding", "cls_token") for name in names)

    def token_id(self, config: Any, modality: str) -> int | None:
        """The id of the placeholder, None when the family has no such modality."""
        return getattr(config, f"{modality}_token_id", None)

    def language_model(self, base: Model) -> Model:
        """The decoder behind the projector: its `layers`, and the `norm` behind them.

        Raises:
            VTCError: none is found.
        """
        lm = find(base, _LANGUAGE_MODELS, "language model")[2]
        for part in ("layers", "norm"):
            find(lm, (part,), f"language model's {part}")
        return lm

    def blocks(self, types: Tensor) -> Tensor | None:
        """Int64 `[B, L]` of token types: tokens of one block see each other, -1 for none; None where the
        language model looks back alone."""
        return None

    # -- how a call's outcome is to be read ----------------------------------------------------

    def newline(self, base: Model) -> Tensor | None:
        """The separator embedding, None when the family has none."""
        return getattr(base, "image_newline", None)

    def units(self, call: Call) -> list[Unit]:
        """The images or clips of a call, in the order of their placeholders.

        Here: every tile is an image, and its tokens are a square grid.
        """
        return [Unit(uncut(square(len(tile)))) for tile in call.output.pooler_output]

    def fuse(self, call: Call, values: Tensor) -> Tensor:
        """Values of the tower's patches `[S0, ...]`, CLS left out, as means over the tokens `[S, ...]`.

        Both tile after tile in the tower's order. Here: patches are tokens.
        """
        return values

    def cell(self, base: Model) -> tuple[int, int]:
        """`(rows, cols)` of the patches behind a token, for methods that judge them one by one
        (`Method.by_patch`); (1, 1) where only `fuse` says how patches and tokens belong together."""
        return 1, 1

    def fit(self, base: Model, modality: str) -> str:
        """What the family's processor does to a picture that becomes one tile: `ImageReport.fit`."""
        return "stretch"

    def notes(self, base: Model, method: Method) -> list[str]:
        """What a reader of the reports should know of this method on this family.

        Raises:
            VTCError: the method cannot work on it.
        """
        if method.projects and self.irreplaceable:
            raise VTCError(
                f"projector: one of {method.name!r} cannot take the place of {type(base).__name__}'s "
                f"own, {self.irreplaceable}; 'pool' works here"
            )
        method.check()
        if not self.fuses or method.stage != "vision":
            return []
        return [f"the method works on tokens behind the projector, {self.fuses}"]

    def check(self, base: Model) -> None:
        """Raise `VTCError` when this checkpoint's configuration cannot be compressed."""
        strategy = getattr(base.config, "vision_feature_select_strategy", None)
        if strategy == "full" and self.has_cls(base):
            raise VTCError(
                "vision_feature_select_strategy: got 'full', which hands the CLS token to the language "
                "model as if it were a patch; allowed here is 'default'"
            )

    def final_norm(self, base: Model, modality: str = "image") -> nn.Module:
        """The norm behind the tower's last layer.

        Raises:
            VTCError: none is found.
        """
        tower = self.tower(base, modality)
        return find(getattr(tower, "vision_model", tower), _NORMS, "norm behind its tower")[2]

    def pooling_head(self, base: Model, modality: str = "image") -> Model:
        """The attention head that pools an image into one vector, as SigLIP's towers may have.

        Raises:
            VTCError: the tower has none.
        """
        tower = self.tower(base, modality)
        return find(getattr(tower, "vision_model", tower), ("head",), "pooling head")[2]

    def token_pixels(self, call: Call, units: Sequence[Unit]) -> Tensor:
        """`[S, values]`, the pixels behind each token, scaled as the tower reads them; tile after tile
        in the tower's order.

        Raises:
            VTCError: nothing says where they lie.
        """
        tiles = cat_views([self.pixels(call, units, i) for i in range(len(units))])
        grids = {unit.patch_grid for unit in units}
        if tiles.dim() != 4 or len(tiles) != sum(u.tiles for u in units) or len(grids) > 1:
            raise VTCError(
                "method: it reads the pixels behind tokens, but where those of "
                f"{type(call.base).__name__} lie in {list(tiles.shape)} needs an adapter"
            )
        (rows, cols), (height, width) = *grids, tiles.shape[-2:]
        return token_pixels(tiles, (rows, cols), (height // rows, width // cols)).flatten(0, 1)

    def encoder(self, base: Model, kwargs: Mapping[str, Any]) -> Model:
        """What has the functions that encode the pixels in `kwargs`."""
        return base

    def only(self, call: Call, kept: Sequence[Tensor]) -> dict[str, Any]:
        """Arguments of the encoder with which it encodes some tokens of each image alone, where it can
        (`takes_some`).

        Args:
            kept: of each image int64, rising, the tokens in the order in which they are packed.
        """
        raise NotImplementedError

    def pixels(self, call: Call, units: Sequence[Unit], index: int) -> Tensor:
        """The pixels of unit `index`, without tiles that only pad the batch."""
        values = call.pixels
        if values.dim() == 5 and len(values) == len(units):
            return values[index, : units[index].tiles]
        start = sum(unit.tiles for unit in units[:index])
        return values.flatten(0, -4)[start : start + units[index].tiles]


def find(module: Model, paths: Sequence[str], what: str) -> tuple[nn.Module, str, nn.Module]:
    """The first of the dotted `paths` that exists: its owner, its name, itself."""
    for path in paths:
        owner, names = module, path.split(".")
        for name in names[:-1]:
            owner = getattr(owner, name, None)
        found = getattr(owner, names[-1], None)
        if isinstance(found, nn.Module):
            return owner, names[-1], found
    raise VTCError(f"model: {type(module).__name__} has no {what} under any of {', '.join(paths)}")


def register_adapter(*class_names: str) -> Callable[[A], A]:
    """Class decorator: use the adapter for these transformers classes and their subclasses.

    Raises:
        VTCError: another adapter has one of them.
    """

    def decorate(cls: A) -> A:
        for name in class_names:
            put(_ADAPTERS, "adapter", name, cls)
        return cls

    return decorate


def register_fallback(cls: A) -> A:
    """Class decorator: use the adapter for classes that no other one knows."""
    _FALLBACK[:] = [cls]
    return cls


def supported_classes() -> list[str]:
    """Names of the model classes that have an adapter."""
    return sorted({*_ADAPTERS, *_ELSEWHERE})


def adapter_for(model: Model) -> Adapter:
    """The adapter of a model, looked up along its class's bases.

    Raises:
        VTCError: no adapter knows the class.
    """
    for cls in type(model).__mro__:
        name = cls.__name__
        if name in _ELSEWHERE and name not in _ADAPTERS:
            importlib.import_module(_ELSEWHERE[name])
        if name in _ADAPTERS:
            return _ADAPTERS[name]()
    base = getattr(model, "base_model", None)
    takes = inspect.signature(type(model).forward).parameters
    if hasattr(base, "get_image_features") and "mm_encoder_outputs" in takes:
        warnings.warn(
            f"{type(model).__name__} has no adapter: its images are taken to be what "
            "get_image_features returns, one after the other, each a grid of its own. Signals are "
            "read where one patch of the tower is one token. Check a few answers",
            stacklevel=2,
        )
        return _FALLBACK[0]()
    raise VTCError(
        f"model: {type(model).__name__} is not supported, supported are "
        f"{', '.join(supported_classes())}"
    )
