"""The one LightningModule: items → vectors → faded interest → scores, and what is learned from them."""

import math
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.functional import embedding
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MetricCollection

from halflife import settings
from halflife.batches import Batch
from halflife.datamodule import DataModule
from halflife.decay.configured import kernels
from halflife.decay.kernel import Kernel
from halflife.decay.none import NoDecay
from halflife.encoders.ids import IdEmbedding
from halflife.encoders.rendered import Rendered
from halflife.encoders.text import TextEncoder
from halflife.encoders.topics import Topics
from halflife.encoders.vectors import ItemVectors
from halflife.errors import InputError, choice, number, whole
from halflife.interest.behaviour_text import BehaviourText
from halflife.interest.compose import Interest
from halflife.losses import at_least_float32

Loss = Callable[..., Tensor]


def score(
    decay: Kernel,
    interest: Interest,
    batch: Batch,
    items: Tensor,
    candidate_decay: Kernel | None = None,
) -> Tensor:
    """Scores (B, C) of a batch: its clicks, faded by their age, against its candidates.

    score_c = interest_c + log w(age of c), with the last term where `candidate_decay` is given: the odds of a
    click fade as the item ages, by half in a half-life, whatever the reader's interest.

    Args:
        decay: age to log-weight.
        interest: vectors, log-weights and ages to scores.
        batch: histories and candidates as places in its distinct items.
        items: vectors of those items.
        candidate_decay: age of an item to log-weight; None where candidates do not fade.

    Shape: items (U, dim) → (B, C).
    """
    # Half precision is for the encoder: a score of 8 bits ties candidates, and moves a half-life. What reads
    # text has its encoder here.
    half = interest.reads_text and torch.is_autocast_enabled(items.device.type)
    with torch.autocast(items.device.type, enabled=half):
        items = items if interest.reads_text else at_least_float32(items)
        # embedding, not items[…]: the gradient of indexing adds up in whatever order the threads come
        history, candidates = embedding(batch.history, items), embedding(batch.candidates, items)
        return score_vectors(decay, interest, batch, history, candidates, candidate_decay)


def score_vectors(
    decay: Kernel,
    interest: Interest,
    batch: Batch,
    history: Tensor,
    candidates: Tensor,
    candidate_decay: Kernel | None = None,
) -> Tensor:
    """Scores (B, C) of a batch, the vectors of its clicks (B, H, dim) and candidates (B, C, dim) given."""
    if decay.signed:
        history = history * decay.sign_of(batch).unsqueeze(-1)
    scores: Tensor = interest(history, decay.of(batch), batch.history_mask, candidates, batch.age)
    return scores if candidate_decay is None else scores + candidate_decay.of_candidates(batch)


class Recommender(pl.LightningModule):
    """Predicts the next click from faded past ones.

    Args:
        encoder: items to vectors.
        decay: age to log-weight.
        interest: vectors, log-weights and ages to scores.
        loss: scores, labels and mask to a scalar.
        metrics: computed on validation and test, by name.
        head_lr: learning rate of the projection and the interest model.
        decay_lr: learning rate of the decay parameters, which are logarithms: 0.05 moves a half-life by 5 %.
        weight_decay: of matrices; never of decay parameters, which it would pull towards one unit.
        warmup_steps: steps of linear rise to the full learning rates.
        schedule: behind the rise: `constant`, `linear` or `cosine`, to 0 at the end.
        schedule_epochs: the epoch at which `linear` and `cosine` reach 0.
        seed: of dropout, with the step: a resumed run draws what it would have drawn.
        unit: `days` or `rank`, for names.
        impressions: of the training split, over which the kernels' priors are shared out.
        candidate_decay: age of a candidate, in days, to log-weight, added to its score.

    Raises:
        InputError: for a setting out of range, or a kernel that does not fit where it is put.
    """

    def __init__(
        self,
        encoder: TextEncoder | IdEmbedding | Topics | ItemVectors | Rendered,
        decay: Kernel,
        interest: Interest,
        loss: Loss,
        metrics: dict[str, Any],
        head_lr: float,
        decay_lr: float,
        weight_decay: float,
        warmup_steps: int,
        schedule: str,
        schedule_epochs: int,
        seed: int,
        unit: str,
        impressions: int,
        candidate_decay: Kernel | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.decay, self.interest, self.loss = encoder, decay, interest, loss
        self.head_lr = number("optimizer.head_lr", head_lr, "learning rate", at_least=0)
        self.decay_lr = number("optimizer.decay_lr", decay_lr, "learning rate", at_least=0)
        self.weight_decay = number("optimizer.weight_decay", weight_decay, "factor", at_least=0)
        self.warmup_steps = whole("optimizer.warmup_steps", warmup_steps, "steps", at_least=0)
        self.schedule = choice("optimizer.schedule", schedule, ["constant", "linear", "cosine"])
        self.schedule_epochs = whole("optimizer.schedule_epochs", schedule_epochs, "epochs", at_least=1)
        self.seed, self.impressions = seed, impressions
        self.candidate_decay = candidate_decay
        if candidate_decay is not None:
            _check_candidate_decay(candidate_decay)
        self.unit = "rank" if decay.ranks else unit
        name = type(interest).__module__.rpartition(".")[2]
        if decay.signed and interest.reads_text:
            raise InputError(
                f"decay must be a kernel of weights above 0 for a model that reads text, got "
                f"{type(decay).__name__}; choose another one, since a logarithm has no sign"
            )
        if decay.signed and not interest.signed:
            raise InputError(
                f"interest must be pool for a kernel with negative weights, got {name} with "
                f"{type(decay).__name__}; add interest=pool, since a logarithm has no sign"
            )
        if interest.own_time and not isinstance(decay, NoDecay):
            raise InputError(
                f"decay must be none for interest={name}, which keeps its own time and reads no kernel, got "
                f"{type(decay).__name__}; add decay=none"
            )
        self.val_metrics = MetricCollection(dict(metrics), prefix="val/")
        self.test_metrics = MetricCollection(dict(metrics), prefix="test/").clone(prefix="test/")
        self.register_state_dict_post_hook(_without_quantisation)
        self.predictions: dict[str, list[NDArray[Any]]] = {}
        self._vectors: Tensor | None = None

    def score(self, batch: Batch, items: Tensor) -> Tensor:
        """Scores (B, C) of a batch, given the vectors of its distinct items (U, dim)."""
        return score(self.decay, self.interest, batch, items, self.candidate_decay)

    def kernels(self) -> list[Kernel]:
        """The kernel of clicks, and that of candidates where there is one."""
        return [self.decay] if self.candidate_decay is None else [self.decay, self.candidate_decay]

    @property
    def learns_vectors(self) -> bool:
        """Whether training changes the items' vectors."""
        return any(p.requires_grad for p in self.encoder.parameters())

    @property
    def learns_decay(self) -> bool:
        """Whether training changes the kernel of clicks."""
        return any(p.requires_grad for p in self.decay.parameters())

    def forward(self, batch: Batch) -> Tensor:
        """Scores (B, C) of a batch, its items encoded here; logits, padded places included."""
        return self.score(batch, self.encoder(batch))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        seed_step(self, self.seed, batch_idx)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        score = self(batch)
        if batch.log_rate is not None:  # a part of the negatives (draws.InView): odds among all are smaller
            score = score - batch.log_rate
        loss = self.loss(score, batch.label, batch.candidate_mask)
        if not torch.isfinite(loss):
            raise InputError(
                f"train/loss must stay finite, got {loss.item()} at step {self.global_step}; lower model.lr, "
                "optimizer.head_lr or optimizer.decay_lr, or clip with trainer.gradient_clip_val"
            )
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        if self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            # straight to the loggers: self.log costs a millisecond a value, and a frozen step takes a few
            rates = {f"lr/{group['name']}": group["lr"] for group in self.trainer.optimizers[0].param_groups}
            for logger in self.loggers:
                logger.log_metrics(rates, step=self.global_step)
        if self.decay.half_life is not None:
            self.log(
                f"decay/half_life_{self.unit}",
                self.decay.half_life.detach(),
                prog_bar=True,
                batch_size=len(batch),
            )
        candidate_decay = self.candidate_decay
        if candidate_decay is not None and candidate_decay.half_life is not None:
            half_life = candidate_decay.half_life.detach()
            self.log("decay/candidate_half_life_days", half_life, batch_size=len(batch))
        loss = loss - sum(kernel.log_prior() for kernel in self.kernels()) / self.impressions
        return loss + self.encoder.penalty() if isinstance(self.encoder, TextEncoder) else loss

    def on_train_start(self) -> None:
        if isinstance(self.encoder, TextEncoder):
            self.encoder.plan(int(self.trainer.estimated_stepping_batches))

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if isinstance(self.encoder, TextEncoder):
            self.encoder.stepped(self.global_step)

    def on_validation_epoch_start(self) -> None:
        self._vectors = self.encoder.catalogue()  # evaluation encodes the catalogue once

    def on_test_epoch_start(self) -> None:
        self._vectors = self.encoder.catalogue()
        self.predictions = {"impression": [], "score": []}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        score = self._evaluate(batch, self.test_metrics)
        self.predictions["impression"].append(batch.impression.cpu().numpy())
        self.predictions["score"].append(score[batch.candidate_mask].float().cpu().numpy())

    def _evaluate(self, batch: Batch, metrics: MetricCollection) -> Tensor:
        if self._vectors is None:
            raise AssertionError("the catalogue is encoded before the first batch")
        score = self.score(batch, self._vectors[batch.item])
        stage = "val" if metrics is self.val_metrics else "test"
        loss = self.loss(score, batch.label, batch.candidate_mask)
        self.log(f"{stage}/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch), sync_dist=True)
        real = batch.candidate_mask
        impression = batch.impression.unsqueeze(1).expand_as(real)[real]
        user = batch.user.unsqueeze(1).expand_as(real)[real]
        metrics.update(score[real].float(), batch.label[real], impression, user)
        return score

    def on_validation_epoch_end(self) -> None:
        self._vectors = None
        self.log_dict(self.val_metrics.compute(), prog_bar=False)
        self.val_metrics.reset()

    def on_test_epoch_end(self) -> None:
        self._vectors = None
        self.log_dict(self.test_metrics.compute())
        self.test_metrics.reset()

    def configure_optimizers(self) -> Any:
        """AdamW over three groups: the pretrained model, the heads, and decay without weight decay."""
        backbone = getattr(self.interest if self.interest.reads_text else self.encoder, "backbone", None)
        tuned = list(backbone.named_parameters()) if isinstance(backbone, nn.Module) else []
        inside = {id(p) for _, p in tuned}
        decay = [p for kernel in self.kernels() for p in kernel.parameters()]
        inside |= {id(p) for p in decay}
        head = [(n, p) for n, p in self.named_parameters() if id(p) not in inside]
        groups = []
        scale: dict[str, float] = getattr(backbone, "lr_scale", {})  # by name, where layers differ
        parts = [("encoder", self.encoder.lr, [(n, p) for n, p in tuned if n not in scale])]
        for share in sorted(set(scale.values()), reverse=True):
            named = [(n, p) for n, p in tuned if scale.get(n) == share]
            parts.append((f"encoder_x{share:.3g}", self.encoder.lr * share, named))
        for name, lr, named in (*parts, ("head", self.head_lr, head)):
            for suffix, keep, weight_decay in (("", True, self.weight_decay), ("_no_decay", False, 0.0)):
                # biases, norms and scalars are not pulled to 0
                params = [p for _, p in named if p.requires_grad and (p.ndim > 1) == keep]
                if params:
                    groups.append(
                        {"params": params, "lr": lr, "weight_decay": weight_decay, "name": name + suffix}
                    )
        learned = [p for p in decay if p.requires_grad]
        if learned:
            groups.append({"params": learned, "lr": self.decay_lr, "weight_decay": 0.0, "name": "decay"})
        # one pass over the parameters; under mixed precision Lightning refuses to clip with it
        mixed = self._trainer is not None and "mixed" in str(self.trainer.precision)
        optimizer = torch.optim.AdamW(groups, fused=(self.device.type == "cpu" and not mixed) or None)
        scheduler = LambdaLR(optimizer, self._factor())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _factor(self) -> Callable[[int], float]:
        """Learning rate over its full value, by optimizer step."""
        warmup, schedule = self.warmup_steps, self.schedule
        total = 0.0
        if schedule != "constant":
            epochs = max(1, self.trainer.max_epochs or 1)
            total = self.trainer.estimated_stepping_batches * self.schedule_epochs / epochs

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            if schedule == "constant":
                return 1.0
            done = min(1.0, (step - warmup) / max(1.0, total - warmup))
            return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))

        return factor

    def trainable(self) -> dict[str, int]:
        """How many parameters train and how many there are, frozen and cached ones included."""
        own = list(self.parameters())
        trains = sum(p.numel() for p in own if p.requires_grad)
        return {"trainable": trains, "total": sum(p.numel() for p in own) + self.encoder.frozen_parameters}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # frozen weights come from where they were loaded from; a LoRA checkpoint is a few hundred kB
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        every = self.named_parameters(remove_duplicate=False)  # a prompt knows the embeddings by two names
        loaded = ("encoder.", "interest.backbone.")
        frozen = {n for n, p in every if not p.requires_grad and n.startswith(loaded)}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in frozen}
        whose = identity(self, self.trainer.datamodule)  # type: ignore[attr-defined]
        checkpoint["halflife"] = {"trained": sorted(trained), "identity": whose}
        ranks = getattr(self.encoder, "ranks", None)
        if ranks is not None:
            checkpoint["halflife"]["ranks"] = ranks.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        have = self.state_dict()
        checkpoint["state_dict"] = {**have, **checkpoint["state_dict"]}
        ranks = getattr(self.encoder, "ranks", None)
        if ranks is not None:
            ranks.load_state(checkpoint["halflife"]["ranks"])


def _without_quantisation(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Leave parameters and buffers in a state: what quantised weights add comes with them, from where they
    are loaded, and PyTorch refuses it in a state.
    """
    own = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    names = {prefix + name for name, _ in own}
    for name in [n for n in state if n.startswith(prefix) and n not in names]:
        del state[name]


def seed_step(module: pl.LightningModule, seed: int, batch_idx: int) -> None:
    """Let what a step draws depend on seed, epoch, batch and rank alone: no generator survives a kill."""
    step = np.random.SeedSequence([seed, module.current_epoch, batch_idx, module.global_rank])
    # torch.manual_seed formats the stack for every kind of device that is not there: 2 ms a step
    on_cpu = module.device.type == "cpu"
    (torch.default_generator.manual_seed if on_cpu else torch.manual_seed)(int(step.generate_state(1)[0]))


def build(cfg: DictConfig, data: DataModule) -> Recommender:
    """The module that a configuration names, over a log.

    Args:
        cfg: with the groups data, model, decay, interest, loss, metrics and optimizer, and the seed.
        data: of the group data; told which tokens the encoder reads.
    """
    loss, (decay, candidate_decay) = instantiate(cfg.loss), kernels(cfg.decay)
    # the log is built, and every split found to hold something, before a model is loaded
    impressions = {split: len(data.rows(split)) for split in ("train", "val", "test")}
    for kernel in (decay, candidate_decay):
        kernel.bind(data.store)
    model = instantiate(cfg.model)(store=data.store)
    if isinstance(model, BehaviourText):  # it is the interest as well
        encoder, interest = model.items, model
        if HydraConfig.initialized():
            read = [f"{key}.*" for key in (*settings.KEYS, "experiment") if key != "interest"]
            settings.check_read(list(HydraConfig.get().overrides.task), read, "a model that reads histories")
    else:
        encoder, interest = model, instantiate(cfg.interest)(dim=model.dim)
    if data.store.has_vectors and not isinstance(encoder, TextEncoder | ItemVectors):
        raise InputError(
            "model must be item_vectors or a text encoder for a log with item vectors, got "
            f"{type(model).__name__}; choose one, or leave data.vectors (or data.source.items.vector) out"
        )
    data.tokens = encoder.tokens if encoder.reads_tokens else None
    return Recommender(
        encoder,
        decay,
        interest,
        loss,
        instantiate(cfg.metrics),
        **instantiate(cfg.optimizer),
        seed=cfg.seed,
        unit=data.unit,
        impressions=impressions["train"],
        candidate_decay=candidate_decay,
    )


def _check_candidate_decay(kernel: Kernel) -> None:
    """Raise the InputError when a kernel cannot fade candidates."""
    for wrong, why in (
        (kernel.signed, "a logarithm has no sign"),
        (kernel.ranks, "a candidate has an age but no place in the order of clicks"),
        (kernel.clicks_only, "a candidate has no kind of event"),
    ):
        if wrong:
            raise InputError(
                f"decay.candidate must be a kernel of the age alone (days), got {type(kernel).__name__}; "
                f"choose another one, since {why}"
            )


def identity(module: Recommender, data: DataModule) -> dict[str, str]:
    """What makes a run this run and no other, by the key that a user would set: its log and split, its parts.

    Epochs, learning rates, loggers and folders are left out: a run may go on with others.
    """
    parts = {
        path.replace("candidate_decay", "decay.candidate"): type(part).__name__
        for path, part in module.named_modules()
        if path in ("encoder", "interest") or path.partition(".")[0].endswith("decay")
    }
    composition = getattr(module.interest, "composition", None)
    return {
        "data": f"the log with fingerprint {data.store.about['fingerprint']}",
        "data.split": data.split.name,
        "data.age": data.age,
        "data.max_history": str(data.max_history),
        "data.min_history": str(data.min_history),
        **{path.replace("encoder", "model"): name for path, name in parts.items()},
        **module.encoder.identity,
        **({} if composition is None else {"interest.composition": composition}),
    }
