"""The likelihood of a split as a function of the few scalars of decay and interest, item vectors held fixed.

What is free is a handful of numbers, so a pass over the split takes a fraction of a second, and a fit, a
profile, a bootstrap and a permutation test are all minimisations of the same function. Scores are float32;
whatever is summed over impressions is float64, which leaves about 10⁻⁵ nats of error in 20,000 impressions.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd

from halflife.batches import Batch
from halflife.decay.kernel import LARGEST, Kernel
from halflife.decay.none import NoDecay
from halflife.interest.compose import Interest
from halflife.parts import Part, gathered, joined, pieces, rows_of
from halflife.ranges import shuffled
from halflife.recommender import Recommender, score_vectors

PRIOR_STEPS, PRIOR_STILL = 20, 0.02  # of an estimated prior, and the move of its logarithm that ends them
STEPS = 40  # of one minimisation; a dozen is usual, and a half-life that runs away to infinity stops here
ENOUGH = 1e-4  # nats that a step is expected to gain, below which the minimum is reached
START_CANDIDATES = 20_000  # on which several starts are compared
NO_DECAY = 1e9  # days: a half-life at which nothing has faded in any log


@dataclass(frozen=True)
class Point:
    """A minimum: free parameters on end (float64), and the negative log-likelihood there, prior included."""

    theta: Tensor
    value: float


class _Scores(nn.Module):
    """Scores as a function of the decay and interest parameters alone."""

    def __init__(self, decay: Kernel, interest: Interest, candidate_decay: Kernel | None) -> None:
        super().__init__()
        self.decay, self.interest, self.candidate_decay = decay, interest, candidate_decay

    def kernels(self) -> dict[str, Kernel]:
        """The kernels by their names as parameters have them."""
        both = {"decay": self.decay, "candidate_decay": self.candidate_decay}
        return {name: kernel for name, kernel in both.items() if kernel is not None}

    def forward(self, part: Part | None) -> Tensor:
        """Scores of a part; the log prior of the kernels without one."""
        if part is None:
            return torch.stack([kernel.log_prior() for kernel in self.kernels().values()]).sum()
        batch, history, candidates = part.batch, part.history, part.candidates
        return score_vectors(self.decay, self.interest, batch, history, candidates, self.candidate_decay)


class Likelihood:
    """−log L(θ) = Σ_i w_i · nll_i(θ) − log prior(θ), with its slope and curvature.

    Args:
        module: decay, interest and loss, copied; what trains in them and is small is free.
        batches: of the split; any order.
        vectors: of every item of the catalogue.

    Attributes:
        names: of each entry of θ; a vector's name occurs once an entry.
        user: of each impression, (impressions,).
        start: θ as the module has it.
        half_life: name of the log half-life in θ, or None where it is not free.
    """

    def __init__(self, module: Recommender, batches: Iterable[Batch], vectors: Tensor) -> None:
        self._loss = module.loss
        self._take(_Scores(module.decay, module.interest, module.candidate_decay))
        vectors = vectors.detach().cpu()
        whole = (gathered(b.to("cpu"), vectors, module.interest.bilinear) for b in batches)
        self._parts = joined([piece for part in whole for piece in pieces(part)])
        self.user = torch.cat([p.batch.user for p in self._parts])
        self._no_decay: list[float] = []  # found once, for every kernel on these impressions: copies share it

    def with_decay(self, decay: Kernel) -> "Likelihood":
        """The same impressions under another kernel, everything else where θ starts."""
        other = copy.copy(self)
        other._take(_Scores(decay, self._scores.interest, self._scores.candidate_decay))
        return other

    def buffers(self) -> dict[str, Tensor]:
        """What the kernels' priors learned, by name."""
        return dict(self._scores.named_buffers())

    @property
    def estimated_priors(self) -> int:
        """How many numbers of the kernels' priors are learned beside θ."""
        return sum(kernel.estimated_priors for kernel in self._scores.kernels().values())

    def _take(self, scores: _Scores) -> None:
        """Find what is free in a copy."""
        self._scores = copy.deepcopy(scores).cpu().float().eval()
        free = {
            n: p
            for n, p in self._scores.named_parameters()
            if p.requires_grad and p.numel() <= LARGEST and ("decay." in n or p.ndim == 0)
        }
        self._fixed = {n: p.detach() for n, p in self._scores.named_parameters()}
        self._shapes = {n: p.shape for n, p in free.items()}
        self.names = [n for n, p in free.items() for _ in range(p.numel())]
        self.half_life = next(
            (n for n in self.names if n.startswith("decay.") and n.endswith(".log_half_life")), None
        )
        flat = [p.detach().reshape(-1) for p in free.values()]
        self.start = torch.cat(flat).double() if flat else torch.zeros(0, dtype=torch.float64)

    def values(self, theta: Tensor) -> dict[str, Tensor]:
        """Parameters by name, from θ."""
        sizes = [s.numel() for s in self._shapes.values()]
        return {
            n: part.reshape(s)
            for (n, s), part in zip(self._shapes.items(), theta.split(sizes) if sizes else (), strict=True)
        }

    def _score(self, theta: Tensor, part: Part | None) -> Tensor:
        return functional_call(self._scores, {**self._fixed, **self.values(theta.float())}, (part,))

    def _log_prior(self, theta: Tensor) -> Tensor:
        return self._score(theta, None)

    def prior(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Slope (P,) and Hessian (P, P) of −log prior."""
        return -grad(self._log_prior)(theta), -hessian(self._log_prior)(theta)

    def _each(self, score: Tensor, part: Part) -> Tensor:
        """Negative log-likelihood of each impression."""
        return self._loss(score, part.batch.label, part.batch.candidate_mask, reduction="sum")

    def _weights(self, weight: Tensor | None) -> Iterable[Tensor]:
        sizes = [len(p.batch) for p in self._parts]
        whole = torch.ones(sum(sizes), dtype=torch.float64) if weight is None else weight
        return whole.split(sizes)

    @torch.no_grad()
    def value(self, theta: Tensor, weight: Tensor | None = None) -> float:
        """−log L at θ, each impression counted `weight` times."""
        total = -float(self._log_prior(theta))
        for part, w in zip(self._parts, self._weights(weight), strict=True):
            total += float(w @ self._each(self._score(theta, part), part).double())
        return total

    def curvature(self, theta: Tensor, weight: Tensor | None = None) -> tuple[float, Tensor, Tensor]:
        """−log L, its slope, and its Gauss–Newton curvature Σ Jᵀ (∂²nll/∂score²) J, which is never negative.

        Source: Schraudolph, Fast Curvature Matrix-Vector Products (Neural Computation 2002), section 3.
        """
        value = -float(self._log_prior(theta))
        slope, bend = self.prior(theta)
        for part, w in zip(self._parts, self._weights(weight), strict=True):

            def scored(t: Tensor, part: Part = part) -> tuple[Tensor, Tensor]:
                score = self._score(t, part)
                return score, score

            jacobian, score = jacfwd(scored, has_aux=True)(theta)  # (B, C, P)
            each, g, hj = self._by_score(score, jacobian, part)
            value += float(w @ each.double())
            # a value and its slope have to agree to the last nat; a curvature only says how far to go
            weighted = w.float().view(-1, 1, 1) * jacobian
            slope += (weighted * g.unsqueeze(2)).sum((0, 1), dtype=torch.float64)
            bend += (weighted.flatten(0, 1).T @ hj.flatten(0, 1)).double()
        return value, slope, bend

    def _by_score(self, score: Tensor, jacobian: Tensor, part: Part) -> tuple[Tensor, Tensor, Tensor]:
        """nll of each impression (B,), its slope in the scores (B, C), and ∂²nll/∂score² · J (B, C, P)."""
        # impressions do not touch each other, so that a slope of their sum is each impression's own
        with torch.enable_grad():
            at = score.detach().requires_grad_()
            each = self._each(at, part)
            (g,) = torch.autograd.grad(each.sum(), at, create_graph=True)
            columns = jacobian.detach().unbind(2)
            hj = [torch.autograd.grad((g * v).sum(), at, retain_graph=True)[0] for v in columns]
        return each.detach(), g.detach(), torch.stack(hj, dim=2)

    def exact(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The slope of each impression's nll, (impressions, P), and the Hessian of −log L, (P, P)."""
        bend = self.prior(theta)[1]
        slopes = []
        for part in self._parts:

            def each(t: Tensor, part: Part = part) -> Tensor:
                return self._each(self._score(t, part), part)

            def total(t: Tensor, each: Callable[[Tensor], Tensor] = each) -> Tensor:
                return each(t).sum()

            slopes.append(jacfwd(each)(theta))
            bend = bend + hessian(total)(theta)
        return torch.cat(slopes), bend

    def minimise(
        self, theta: Tensor, weight: Tensor | None = None, held: Iterable[str] = (), steps: int = STEPS
    ) -> Point:
        """Damped Gauss–Newton steps down to the minimum nearest to θ.

        Args:
            theta: where to start.
            weight: how often each impression counts, (impressions,); once where None.
            held: names that stay as they are.
            steps: at most so many.

        Source: Levenberg, A Method for the Solution of Certain Non-Linear Problems in Least Squares (1944);
        Marquardt (1963) for damping in units of the diagonal.
        """
        held = set(held)
        free = torch.tensor([i for i, n in enumerate(self.names) if n not in held], dtype=torch.long)
        if len(free) == 0:
            return Point(theta, self.value(theta, weight))
        damping = 1e-4
        value, slope, bend = self.curvature(theta, weight)
        for _ in range(steps):
            step = torch.zeros_like(theta)
            step[free] = _step(bend[free][:, free], slope[free], damping)
            if not -float(slope @ step) > ENOUGH:
                break
            tried = self.value(theta + step, weight)
            if tried < value:
                theta, damping = theta + step, max(damping / 10, 1e-9)
                value, slope, bend = self.curvature(theta, weight)
            elif damping > 1e6:
                break
            else:
                damping = max(damping * 10, 1e-4)
        return Point(theta, value)

    @torch.no_grad()
    def per_impression(self, theta: Tensor) -> Tensor:
        """nll of each impression, (impressions,)."""
        return torch.cat([self._each(self._score(theta, p), p).double() for p in self._parts])

    @torch.no_grad()
    def scored(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Score, label and impression (its place in `user`) of each candidate, (rows,)."""
        found, first = [], 0
        for part in self._parts:
            real = part.batch.candidate_mask
            impression = first + torch.arange(len(real)).unsqueeze(1).expand_as(real)
            found.append((self._score(theta, part)[real], part.batch.label[real], impression[real]))
            first += len(real)
        score, label, impression = (torch.cat(x) for x in zip(*found, strict=True))
        return score, label, impression

    def slope(self, theta: Tensor, weight: Tensor) -> Tensor:
        """Slope of Σ_i w_i · nll_i."""
        total = torch.zeros_like(theta)
        for part, w in zip(self._parts, self._weights(weight), strict=True):
            at = theta.clone().requires_grad_()
            total += torch.autograd.grad(w @ self._each(self._score(at, part), part).double(), at)[0]
        return total

    def starts(self, many: int = 7) -> list[float]:
        """Half-lives to start from, quantiles of the ages in histories: far from them the slope vanishes."""
        some = torch.cat([p.batch.age[p.batch.history_mask] for p in self._parts])
        some = some[:: max(1, len(some) // 100_000)]
        some = some[some > 0]
        if len(some) == 0:
            return []
        found = torch.quantile(some, torch.linspace(0.02, 0.98, many, dtype=some.dtype))
        return [float(f) for f in found]

    def at_half_life(self, theta: Tensor, half_life: float) -> Tensor:
        """θ with the half-life put there."""
        moved = theta.clone()
        moved[self.names.index(str(self.half_life))] = torch.tensor(half_life, dtype=theta.dtype).log()
        return moved

    def thinned(self, at_most: int) -> "Likelihood":
        """The same function on about so many impressions, spread over the split."""
        every = -(-len(self.user) // at_most)
        if every <= 1:
            return self
        thin = copy.copy(self)
        thin._no_decay = []
        thin._parts = joined([rows_of(part, slice(None, None, every)) for part in self._parts])
        thin.user = torch.cat([part.batch.user for part in thin._parts])
        return thin

    def shuffled(self, seed: int) -> "Likelihood":
        """The same impressions, their ages dealt out anew among the clicks of each history."""
        other = copy.copy(self)
        other._parts = []
        for part in self._parts:
            batch = part.batch
            dealt = shuffled(batch.impression.numpy(), batch.history_mask.numpy(), seed)
            age = batch.age.gather(1, torch.from_numpy(dealt))
            other._parts.append(replace(part, batch=replace(batch, age=age)))
        return other

    def best(self) -> Point:
        """The lowest minimum found from the module's own values and from several half-lives."""
        # where to go down is seen on a part of the split, the rest is one descent on all of it
        candidates = sum(int(p.batch.candidate_mask.sum()) for p in self._parts)
        thin = self.thinned(max(1, START_CANDIDATES * len(self.user) // max(1, candidates)))
        lowest = thin.minimise(self.start)
        own = torch.tensor(["decay." in name for name in self.names])
        for half_life in thin.starts() if self.half_life is not None else []:
            # shapes as they began: those of the first minimum may have put an end to fading
            there = self.at_half_life(torch.where(own, self.start, lowest.theta), half_life)
            rough = thin.minimise(there, held=[str(self.half_life)], steps=3)
            if rough.value < lowest.value - ENOUGH:
                lowest = thin.minimise(rough.theta)
        found = self.minimise(lowest.theta)
        for _ in range(PRIOR_STEPS):
            if self._update_prior(found.theta) < PRIOR_STILL:
                break
            found = self.minimise(found.theta)
        return found

    def _update_prior(self, theta: Tensor) -> float:
        """Let the kernels' priors learn from how uncertain their parameters are; how far they moved."""
        if all(s.numel() == 1 for s in self._shapes.values()):
            return 0.0
        with torch.no_grad():
            named = dict(self._scores.named_parameters())
            for name, value in self.values(theta).items():
                named[name].copy_(value)
        variance = self.values(torch.linalg.pinv(self.curvature(theta)[2]).diagonal().float())
        moved = 0.0
        for name, kernel in self._scores.kernels().items():
            own = {n.removeprefix(f"{name}."): v for n, v in variance.items() if n.startswith(f"{name}.")}
            moved = max(moved, abs(kernel.update_prior(own)))
        return moved

    def loss(self, theta: Tensor) -> float:
        """−log L without the prior, whose constant is no fit (nats)."""
        return float(self.per_impression(theta).sum())

    def no_decay(self) -> float:
        """−log L of the same impressions at the minimum where no past click fades (nats)."""
        if not self._no_decay:
            plain = self.with_decay(NoDecay())
            self._no_decay.append(plain.loss(plain.minimise(plain.start).theta))
        return self._no_decay[0]

    def without_decay(self, theta: Tensor) -> Point | None:
        """The minimum at an endless half-life, or None where the kernel's is not free; a part of some kernels
        fades there too (`no_decay` is of none).
        """
        if self.half_life is None:
            return None
        return self.minimise(self.at_half_life(theta, NO_DECAY), held=[self.half_life])


def _step(bend: Tensor, slope: Tensor, damping: float) -> Tensor:
    """−(H + damping · diag H + r I)⁻¹ g; zero where the curvature is not finite.

    Free parameters are logarithms, or of that size, and none moves by more than 1 at once. r is the least of
    a few that see to it: it holds back directions in which the likelihood is flat, and leaves steep ones be.

    Source: Conn, Gould & Toint, Trust-Region Methods (2000), section 7.3.
    """
    if not torch.isfinite(bend).all():
        return torch.zeros_like(slope)
    size = bend.diagonal().abs().clamp_min(1e-8).sqrt()
    eye = torch.eye(len(slope), dtype=bend.dtype)
    damped = bend + damping * torch.diag(size**2)
    step = torch.zeros_like(slope)
    for held in (0.0, *torch.logspace(-8, 0, 17, dtype=slope.dtype).tolist()):
        scaled = (damped + held * float(slope.abs().max()) * eye) / torch.outer(size, size)
        step = -torch.linalg.lstsq(scaled, slope / size, driver="gelsd").solution / size
        if float(step.abs().max()) <= 1:
            break
    return step / step.abs().max().clamp_min(1.0)
