"""An objective that can be called: checked options, state, weights and modifiers around one formula."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from pgdpo.messages.errors import InputError
from pgdpo.messages.problems import did_you_mean
from pgdpo.objectives import modifiers
from pgdpo.objectives.batch import Batch, Terms
from pgdpo.objectives.info import PairInfo
from pgdpo.objectives.pairing import Pairing, places_of
from pgdpo.objectives.parts import Parts, flat_share, joint, oriented, share_of, times
from pgdpo.objectives.registry import REGISTRY
from pgdpo.objectives.spec import POOLED, Needs, Spec, check_known

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

    from pgdpo.objectives.compared import Compared
    from pgdpo_kernels import GroupErrors, PairErrors


SUMMED = ("margin", "reward/chosen", "reward/rejected")  # of a pair's parts


@dataclass
class ObjectiveOutput:
    """A loss and what to log with it, of `B` groups, or of pairs, which are groups of two."""

    loss: Tensor  # scalar, the mean of `per_group`
    per_group: Tensor  # [B], weighted; differentiable where it was made of errors
    logits: Tensor  # [B], detached; > 0 where the policy agrees with the label
    stats: dict[str, Tensor]  # detached: [B] for a group's figure, scalar for the batch's
    # The loss by the errors of chosen and rejected, [B, S] each, where it wasn't made of errors.
    slopes: tuple[Tensor, Tensor] | None = None
    parts: dict[str, ObjectiveOutput] = field(default_factory=dict)  # of `separate` parts each one's own
    flat: Tensor | None = None  # [B] of `separate` parts: `parts.flat_share` of their sigmoids


def available() -> list[str]:
    """The names that `build_objective` knows."""
    return list(REGISTRY)


def get_spec(name: str) -> Spec:
    """The declaration of an objective. Raises InputError for an unknown name."""
    if not isinstance(name, str) or name not in REGISTRY:
        hint = did_you_mean(name, REGISTRY) or "."
        raise InputError(f"unknown objective `{name}`{hint} Available: {', '.join(REGISTRY)}")
    return REGISTRY[name]


def check_options(name: str, **options: Any) -> dict[str, Any]:
    """All options of an objective, defaults filled in, without importing torch.

    Modifiers are among them where they are given. Raises InputError naming the objective, the key, the
    value and what is allowed.
    """
    spec = get_spec(name)
    known = {**spec.options, **{key: None for key in modifiers.MODIFIERS}}
    where = f"objective `{name}`"
    check_known(where, options, known)
    checked = {key: option.default for key, option in spec.options.items()}
    for key, value in options.items():
        if key in spec.options:
            checked[key] = spec.options[key].check(f"{where}: `{key}`", value)
    for key in [key for key in options if key not in spec.options and options[key] is not None]:
        checked[key] = modifiers.check(spec, checked, f"{where}: `{key}`", key, options[key])
    if wrong := spec.conflict(checked):
        raise InputError(f"{where}: {wrong}")
    return checked


def needs_of(name: str, **options: Any) -> Needs:
    """What an objective needs under these options, without importing torch. Raises InputError as `check_options`."""
    checked = check_options(name, **options)
    return modifiers.add_needs(get_spec(name).needs_with(checked), checked)


def pools(name: str, **options: Any) -> bool:
    """Whether an objective's loss hangs on the other groups of a batch, of all ranks. Raises as `check_options`."""
    checked = check_options(name, **options)
    whole = checked.get("safeguard", {}).get("scope") == "microbatch"
    return get_spec(name).pools or whole or "adaptive_clip" in checked


def build_objective(
    name: str,
    *,
    process_group: ProcessGroup | None = None,
    seed: int = 0,
    parts: Mapping[str, float | str] | None = None,
    **options: Any,
) -> Objective:
    """An objective by name, with the options and modifiers of `check_options`.

    `process_group`: the ranks that share a batch, for the objectives that look at the whole batch (KTO's
    reference point, sorted and grouped losses) and the micro-batch safeguard; ranks hold equally many pairs.
    `seed`: of the random subsets (`sgdpo`, `saturation_skip`), the same on all ranks; see `Batch.uniform`.
    `parts`: of samples of several parts their weights and the `form` in which they are put together; see `parts.py`.

    Raises InputError as `check_options` and `Parts.read` do.
    """
    return Objective(
        get_spec(name), check_options(name, **options), process_group, seed, parts=Parts.read(parts)
    )


@dataclass
class Objective:
    """`objective(errors, pairs) -> ObjectiveOutput`, differentiable through the fields of `errors`.

    Numbers among `options` may be set anew between steps, as steering does: nothing here keeps what it made of them.
    """

    spec: Spec
    options: dict[str, Any]
    process_group: ProcessGroup | None = None
    seed: int = 0
    state: dict[str, Any] = field(default_factory=dict)
    parts: Parts = field(default_factory=Parts)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def needs(self) -> Needs:
        return modifiers.add_needs(self.spec.needs_with(self.options), self.options)

    @property
    def needs_reference(self) -> bool:
        return self.needs.reference

    @property
    def needs_cross(self) -> bool:
        return self.needs.cross

    def notes(self, columns: Container[str]) -> list[str]:
        """What a run on rows with these columns must know: what the objective nearly is, what its batch is."""
        near = self.spec.near(self.options)
        found = [] if near is None else [f"{self.name} {near}"]
        for column, then in self.spec.without.items():
            if column not in columns:
                found.append(f"{self.name}: no row has `{column}`: {then}")
        if self.spec.groups and "group" in columns:
            found.append(
                f"{self.name}: `group` of pairs is not read: `pgdpo import --groups` writes lists themselves"
            )
        if "pairing" in self.options and "samples" not in columns:
            found.append(
                f"{self.name}: objective.pairing is of groups, and the rows are pairs: it changes nothing"
            )
        if self.options.get("timestep_weight", "none") != "none" and "timestep_weight" in columns:
            found.append(f"{self.name}: beta is multiplied by objective.timestep_weight and by the rows' own")
        return found + [f"{self.name}: {POOLED}"] * self.spec.pools

    def __call__(
        self,
        errors: PairErrors | GroupErrors | Mapping[str, PairErrors | GroupErrors],
        pairs: PairInfo | None = None,
    ) -> ObjectiveOutput:
        """`errors`: of pairs, or of groups of K samples, member by member, or of samples of several parts those of
        each by name; `pairs`: what the data say of them.

        An objective that compares pairs has those of each group that `pairing` names, and a group's loss is their mean.
        Raises InputError if errors or `pairs` lack what the objective needs, or groups have another size than it takes.
        """
        from pgdpo_kernels import PairErrors, mean_loss

        info = PairInfo() if pairs is None else pairs
        if isinstance(errors, Mapping):
            if self.parts.form == "separate":
                return self._separate(errors, info)
            if self.needs_cross:
                raise InputError(
                    f"objective `{self.name}`: `safeguard` goes by the product of two residuals, of which several "
                    "parts have no sum: take `form: separate`, or leave it out"
                )
            errors, info = self.joint(errors, info), replace(info, parts=None)
        if isinstance(errors, PairErrors):
            per_group, logits, stats = self._terms(errors, info)
        else:
            self.check_groups(errors.groups)
            per_group, logits, stats = (self._terms if self.spec.groups else self._of_pairs)(errors, info)
        if info.weight is not None:
            per_group = per_group * _weight(self.name, info.weight, per_group)
        return ObjectiveOutput(mean_loss(per_group), per_group, logits.detach(), _detached(stats))

    def _separate(self, errors: Mapping[str, PairErrors | GroupErrors], info: PairInfo) -> ObjectiveOutput:
        """The weighted sum of the objective of each part, and so of the logits, margins and implicit rewards.

        What the formula keeps from batch to batch it keeps for each part, under `part/name`.
        """
        from pgdpo_kernels import mean_loss

        total: dict[str, Tensor] = {}
        outputs = {}
        for name, part in oriented(errors, info).items():
            start, share = f"{name}/", share_of(self.parts.weight(name), info, name)
            own = {key.removeprefix(start): v for key, v in self.state.items() if key.startswith(start)}
            output = outputs[name] = replace(self, state=own)(part, replace(info, parts=None))
            self.state.update({start + key: value for key, value in own.items()})
            summed = {key: output.stats[key] for key in SUMMED if key in output.stats}
            for key, value in {"": output.per_group, "logits": output.logits, **summed}.items():
                total[key] = total.get(key, 0) + times(value, share)
        per_group, logits = total.pop(""), total.pop("logits")
        if "timestep_weight" in output.stats:
            total["timestep_weight"] = output.stats["timestep_weight"]
        flat = flat_share({name: output.logits for name, output in outputs.items()}, info, self.parts)
        return ObjectiveOutput(mean_loss(per_group), per_group, logits, total, parts=outputs, flat=flat)

    def joint(
        self,
        errors: PairErrors | GroupErrors | Mapping[str, PairErrors | GroupErrors],
        pairs: PairInfo | None = None,
    ) -> PairErrors | GroupErrors:
        """The errors of whole samples: of several parts their weighted sums."""
        if not isinstance(errors, Mapping):
            return errors
        labelled = "segment_labels" in self.needs.pairs
        return joint(errors, PairInfo() if pairs is None else pairs, self.parts, segments_labelled=labelled)

    def check_groups(self, size: object) -> None:
        """Raises InputError unless the objective takes groups of this size, with its modifiers."""
        where = f"objective `{self.name}`"
        if not isinstance(size, int):
            raise InputError(
                f"{where} takes groups of one size at a time, member by member: part the others first"
            )
        if size == 1 and not self.spec.groups:
            raise InputError(f"{where} compares samples, and these are groups of one: take `kto`, or `sft`")
        for key in modifiers.ON_PAIRS[: 2 if self.spec.groups else 1]:
            if key in self.options:
                raise InputError(
                    f"{where}: `{key}` looks at the two samples of a pair, not at groups: leave it out"
                )

    def _terms(
        self, errors: PairErrors | GroupErrors, info: PairInfo
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(losses, logits, stats) of the formula with its modifiers, without weights."""
        _check_present(self.name, self.needs, errors, info)
        batch, stats = modifiers.before(self._batch(errors, info), self.options)
        terms = self.spec.compute(batch, **self._own_options)
        losses, more = modifiers.after(batch, terms, self._modifiers, self.options.get("beta"))
        return losses, terms.logits, {**_rewards(batch, terms), **terms.stats, **stats, **more}

    def _of_pairs(self, errors: GroupErrors, info: PairInfo) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """`_terms` of the pairs that `pairing` makes of groups, a mean over each group's."""
        pairing = self.pairing(errors, info)
        losses, logits, stats = self._terms(
            errors.pairs(pairing.chosen, pairing.rejected), pairing.info(info)
        )
        stats = {name: pairing.per_group(value) if value.dim() else value for name, value in stats.items()}
        return pairing.per_group(losses), pairing.per_group(logits), stats

    def pairing(self, errors: GroupErrors, info: PairInfo) -> Pairing:
        """The pairs that an objective on pairs compares of these groups."""
        size = errors.groups
        places = places_of(info, len(errors.policy) // size, size, errors.policy.detach())
        return Pairing.of(self.options.get("pairing", "best_worst"), places)

    @property
    def fused(self) -> bool:
        """Whether `from_predictions` has it: a formula of `diffusion_dpo_loss`, and no modifier that isn't in it."""
        beside = (value for key, value in self._modifiers.items() if key not in modifiers.FUSED)
        return self.spec.fused(self._own_options) and not any(beside)

    def from_predictions(
        self, compared: Compared, pairs: PairInfo | None = None
    ) -> tuple[ObjectiveOutput, PairErrors]:
        """`self(errors, pairs)` and the errors, without gradient, in one op, where `fused`.

        The loss, its gradient by the predictions, and every number have the same bits. Raises InputError if `pairs`
        lack what the objective needs.
        """
        pairs = PairInfo() if pairs is None else pairs
        _check_pairs(self.name, self.needs, pairs)
        batch = self._batch(None, pairs, compared)
        terms = self.spec.compute(batch, **self._own_options)
        whole, stats = batch.whole, {**_rewards(batch, terms), **terms.stats}
        slopes = whole.slope_chosen, whole.slope_rejected
        output = ObjectiveOutput(whole.loss, whole.losses, whole.logits, _detached(stats), slopes)
        return output, whole.errors

    def _batch(
        self, errors: PairErrors | GroupErrors | None, pairs: PairInfo, compared: Compared | None = None
    ) -> Batch:
        return Batch(
            self.name,
            errors,
            pairs,
            self.state,
            self.process_group,
            self.seed,
            compared,
            limits=modifiers.limits(self._modifiers),
        )

    @property
    def _own_options(self) -> dict[str, Any]:
        return {key: value for key, value in self.options.items() if key in self.spec.options}

    @property
    def _modifiers(self) -> dict[str, Any]:
        return {key: value for key, value in self.options.items() if key not in self.spec.options}

    def untrained(
        self,
        errors: PairErrors | GroupErrors | Mapping[str, PairErrors | GroupErrors],
        pairs: PairInfo | None = None,
    ) -> Tensor:
        """The losses `[B]` of a policy that is the reference, on the same groups; the state stays as it is.

        `errors` must hold the reference's.
        """
        import torch

        if pairs is not None and pairs.masked is not None:
            pairs = replace(pairs, masked=_of_reference(pairs.masked))
        if isinstance(errors, Mapping):
            reference = {name: _of_reference(part) for name, part in errors.items()}
        else:
            reference = _of_reference(errors)
        with torch.no_grad():
            return self(reference, pairs).per_group

    def state_dict(self) -> dict[str, float]:
        """What must outlive the run's end, as plain numbers."""
        return {key: float(value) for key, value in self.state.items()}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.state.clear()
        self.state.update(state)


def _of_reference(errors: PairErrors | GroupErrors) -> PairErrors | GroupErrors:
    """The errors as they are where the policy is the reference. (`cross` scales gradients alone, and stays.)"""
    import torch

    found = {field.name: getattr(errors, field.name) for field in fields(errors)}
    for name, value in found.items():
        if name.startswith("policy"):
            found[name] = found[name.replace("policy", "ref")]
        elif name.startswith(("excess", "drift")) and value is not None:
            found[name] = torch.zeros_like(value)
    return type(errors)(**found)


def _check_present(name: str, needs: Needs, errors: PairErrors | GroupErrors, pairs: PairInfo) -> None:
    side = "_chosen" if hasattr(errors, "policy_chosen") else ""
    wanted = (
        (needs.reference, f"excess{side}", "the reference's errors"),
        (needs.predictions, f"drift{side}", "the reference's predictions"),
        (needs.cross, "cross", "pair_errors(cross=True)"),
    )
    for needed, field_name, what in wanted:
        if needed and getattr(errors, field_name) is None:
            kind = type(errors).__name__
            raise InputError(f"objective `{name}` needs {what}: {kind}.{field_name} is missing")
    _check_pairs(name, needs, pairs)
    if "masked" in needs.pairs and pairs.masked.excess_chosen is None:
        raise InputError(f"objective `{name}` needs the reference's errors in PairInfo.masked too")


def _check_pairs(name: str, needs: Needs, pairs: PairInfo) -> None:
    for field_name in needs.pairs:
        if getattr(pairs, field_name) is None:
            raise InputError(f"objective `{name}` needs PairInfo.{field_name}, and the data doesn't hold it")


def _weight(name: str, weight: Tensor, like: Tensor) -> Tensor:
    if weight.shape != like.shape:
        shapes = f"{tuple(weight.shape)}, expected {tuple(like.shape)}"
        raise InputError(f"objective `{name}`: PairInfo.weight has shape {shapes}")
    return weight.detach().to(like)


def _detached(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach() for key, value in stats.items()}


def _rewards(batch: Batch, terms: Terms) -> dict[str, Tensor]:
    """Margin and implicit rewards before beta, `[B]`, where there is a reference, and omega_t where there is one."""
    omega = {"timestep_weight": batch.info("timestep_weight")} if batch.has("timestep_weight") else {}
    chosen, rejected = terms.reward_chosen, terms.reward_rejected
    excess = batch.pooled.excess if batch.grouped else batch.pooled.excess_chosen
    if chosen is None and excess is not None:
        chosen, rejected = batch.reward_chosen, batch.reward_rejected
    if chosen is None:
        return {"margin": batch.error_rejected - batch.error_chosen, **omega}
    return {"margin": chosen - rejected, "reward/chosen": chosen, "reward/rejected": rejected, **omega}
