"""An objective that can be called: checked options, state, weights and modifiers around one formula."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pgdpo.messages.errors import InputError
from pgdpo.messages.problems import did_you_mean
from pgdpo.objectives import modifiers
from pgdpo.objectives.batch import Batch, PairInfo, Terms
from pgdpo.objectives.registry import REGISTRY
from pgdpo.objectives.spec import POOLED, Needs, Spec, check_known

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

    from pgdpo.objectives.compared import Compared
    from pgdpo_kernels import PairErrors


@dataclass
class ObjectiveOutput:
    """A loss and what to log with it."""

    loss: Tensor  # scalar, the mean of `per_pair`
    per_pair: Tensor  # [B], weighted; differentiable where it was made of errors
    logits: Tensor  # [B], detached; > 0 where the policy agrees with the label
    stats: dict[str, Tensor]  # detached: [B] for a pair's figure, scalar for the batch's
    # The loss by the errors of chosen and rejected, [B, S] each, where it wasn't made of errors.
    slopes: tuple[Tensor, Tensor] | None = None


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


def build_objective(
    name: str, *, process_group: ProcessGroup | None = None, seed: int = 0, **options: Any
) -> Objective:
    """An objective by name, with the options and modifiers of `check_options`.

    `process_group`: the ranks that share a batch, for the objectives that look at the whole batch (KTO's
    reference point, sorted and grouped losses) and the micro-batch safeguard; ranks hold equally many pairs.
    `seed`: of the random subsets (`sgdpo`, `saturation_skip`), the same on all ranks; see `Batch.uniform`.

    Raises InputError as `check_options` does.
    """
    return Objective(get_spec(name), check_options(name, **options), process_group, seed)


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
        if self.options.get("timestep_weight", "none") != "none" and "timestep_weight" in columns:
            found.append(f"{self.name}: beta is multiplied by objective.timestep_weight and by the rows' own")
        return found + [f"{self.name}: {POOLED}"] * self.spec.pools

    def __call__(self, errors: PairErrors, pairs: PairInfo | None = None) -> ObjectiveOutput:
        """`errors`: fields `[B, S]`. Raises InputError if they or `pairs` lack what the objective needs."""
        from pgdpo_kernels import mean_loss

        pairs = PairInfo() if pairs is None else pairs
        _check_present(self.name, self.needs, errors, pairs)
        batch, stats = modifiers.before(self._batch(errors, pairs), self.options)
        terms = self.spec.compute(batch, **self._own_options)
        per_pair, more = modifiers.after(batch, terms, self._modifiers, self.options.get("beta"))
        if batch.has("weight"):
            per_pair = per_pair * batch.info("weight")
        stats = {**_rewards(batch, terms), **terms.stats, **stats, **more}
        return ObjectiveOutput(mean_loss(per_pair), per_pair, terms.logits.detach(), _detached(stats))

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

    def _batch(self, errors: PairErrors | None, pairs: PairInfo, compared: Compared | None = None) -> Batch:
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

    def untrained(self, errors: PairErrors, pairs: PairInfo | None = None) -> Tensor:
        """The losses `[B]` of a policy that is the reference, on the same pairs; the state stays as it is.

        `errors` must hold the reference's.
        """
        import torch

        if pairs is not None and pairs.masked is not None:
            pairs = replace(pairs, masked=_of_reference(pairs.masked))
        with torch.no_grad():
            return self(_of_reference(errors), pairs).per_pair

    def state_dict(self) -> dict[str, float]:
        """What must outlive the run's end, as plain numbers."""
        return {key: float(value) for key, value in self.state.items()}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.state.clear()
        self.state.update(state)


def _of_reference(errors: PairErrors) -> PairErrors:
    """The errors as they are where the policy is the reference. (`cross` scales gradients alone, and stays.)"""
    import torch

    nothing = ("excess_chosen", "excess_rejected", "drift_chosen", "drift_rejected")
    same = {name: torch.zeros_like(value) for name in nothing if (value := getattr(errors, name)) is not None}
    return replace(errors, policy_chosen=errors.ref_chosen, policy_rejected=errors.ref_rejected, **same)


def _check_present(name: str, needs: Needs, errors: PairErrors, pairs: PairInfo) -> None:
    wanted = (
        (needs.reference, "excess_chosen", "the reference's errors"),
        (needs.predictions, "drift_chosen", "the reference's predictions"),
        (needs.cross, "cross", "pair_errors(cross=True)"),
    )
    for needed, field_name, what in wanted:
        if needed and getattr(errors, field_name) is None:
            raise InputError(f"objective `{name}` needs {what}: PairErrors.{field_name} is missing")
    _check_pairs(name, needs, pairs)
    if "masked" in needs.pairs and pairs.masked.excess_chosen is None:
        raise InputError(f"objective `{name}` needs the reference's errors in PairInfo.masked too")


def _check_pairs(name: str, needs: Needs, pairs: PairInfo) -> None:
    for field_name in needs.pairs:
        if getattr(pairs, field_name) is None:
            raise InputError(f"objective `{name}` needs PairInfo.{field_name}, and the data doesn't hold it")


def _detached(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach() for key, value in stats.items()}


def _rewards(batch: Batch, terms: Terms) -> dict[str, Tensor]:
    """Margin and implicit rewards before beta, `[B]`, where there is a reference, and omega_t where there is one."""
    omega = {"timestep_weight": batch.info("timestep_weight")} if batch.has("timestep_weight") else {}
    chosen, rejected = terms.reward_chosen, terms.reward_rejected
    if chosen is None and batch.pooled.excess_chosen is not None:
        chosen, rejected = batch.reward_chosen, batch.reward_rejected
    if chosen is None:
        return {"margin": batch.error_rejected - batch.error_chosen, **omega}
    return {"margin": chosen - rejected, "reward/chosen": chosen, "reward/rejected": rejected, **omega}
