"""Domain-adaptive pretraining: a masked language model goes on with the texts of a log's items.

A LightningModule of its own, since nothing of recommending is in it: no reader, no click, no kernel. It
shares the Store, the tokens, the sampler, and the groups trainer and logger: what is known of a run holds.
"""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchmetrics import CatMetric

from halflife import loggers, pretrained, settings, tracking
from halflife.checkpoints import read_checkpoint
from halflife.datamodule import DataModule
from halflife.errors import InputError, number, whole
from halflife.ranges import ranges
from halflife.recommender import seed_step
from halflife.sampler import BatchRows
from halflife.summary import peak_mib, write_json

Array = NDArray[Any]

READ = [
    *("data.*", "model", "model.pretrained", "model.max_tokens", "task.*", "trainer.*", "logger.*"),
    *("experiment", "seed", "ckpt", "cache_dir"),
]
"""What of a configuration this task reads."""

MOST_HELD_OUT = 500
"""Texts whose every token is hidden once to measure: 5,000 passes of a title each."""

MEASURED_ROWS = 64
"""Texts measured together: their scores over a vocabulary of 30,000 words are 100 MB."""

KEY = "pseudo_log_likelihood"


class Texts(Dataset[tuple[Tensor, Tensor]]):
    """Token ids of texts, and where they are real; asked for a batch of rows at a time.

    Args:
        ids, start: of the catalogue, from `Store.tokens`.
        rows: of the catalogue, the texts of this dataset.
        pad: the id of a padded place.
    """

    def __init__(self, ids: Array, start: Array, rows: Array, pad: int) -> None:
        self.ids, self.start, self.length, self.pad = ids, start[rows], start[rows + 1] - start[rows], pad

    def __getitem__(self, rows: Array) -> tuple[Tensor, Tensor]:
        index, mask = ranges(self.start[rows], self.length[rows])
        ids = np.where(mask, self.ids[index], self.pad).astype(np.int64)
        return torch.from_numpy(ids), torch.from_numpy(mask)


class HiddenTokens(Dataset[tuple[Tensor, Tensor, Tensor, Tensor]]):
    """Each token of some texts hidden in turn: ids, where they are real, the hidden place, what stood there.

    Args:
        texts: whose tokens are hidden.
        special: ids that are never hidden.
        hidden: the id that hides another.
    """

    def __init__(self, texts: Texts, special: list[int], hidden: int) -> None:
        self.texts, self.hidden = texts, hidden
        index, mask = ranges(texts.start, texts.length)
        self.text, self.place = np.nonzero(mask & ~np.isin(texts.ids[index], special))
        order = np.argsort(texts.length[self.text], kind="stable")  # hardly a padded place
        self.text, self.place = self.text[order], self.place[order]

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, rows: Array) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ids, mask = self.texts[self.text[rows]]
        at, place = torch.arange(len(rows)), torch.from_numpy(self.place[rows])
        word = ids[at, place]
        ids[at, place] = self.hidden
        return ids, mask, place, word


class MaskedWords(pl.LightningModule):
    """A masked language model, and its pseudo-perplexity on texts that it does not train on.

    PPPL = exp(−(1 / N) Σ_texts Σ_t log P(w_t | the text without w_t)), over N tokens, each hidden in turn.

    Args:
        model: of `transformers`, with its head.
        tokenizer: its own.
        mask_share: fraction of the tokens that a step hides, of which 8 in 10 are masked, 1 replaced, 1 kept.
        lr: learning rate of every parameter.
        weight_decay: of matrices.
        seed: of masks and dropout, with the step: a resumed run draws what it would have drawn.
        identity: what makes this run this run, by the key that a user would set.

    Source: Devlin et al., BERT (NAACL 2019), section 3.1; going on with it in the domain is Gururangan et
    al., Don't Stop Pretraining (ACL 2020); PPPL is Salazar et al., Masked Language Model Scoring (ACL 2020),
    section 2.3.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        mask_share: float,
        lr: float,
        weight_decay: float,
        seed: int,
        identity: dict[str, str],
    ) -> None:
        super().__init__()
        from transformers import DataCollatorForLanguageModeling

        self.model = model.train()
        share = number("task.mask_share", mask_share, "fraction of the tokens", above=0, at_most=0.5)
        self.collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=share)
        self.special = torch.tensor(tokenizer.all_special_ids)
        self.lr = number("task.lr", lr, "learning rate", above=0)
        self.weight_decay = number("task.weight_decay", weight_decay, "factor", at_least=0)
        self.seed, self.identity = seed, identity
        self.surprise = CatMetric()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        seed_step(self, self.seed, batch_idx)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        ids, mask = batch
        clear = ids.cpu()  # the collator draws there
        masked, word = self.collator.torch_mask_tokens(clear.clone(), torch.isin(clear, self.special))
        logits = self.model(input_ids=masked.to(self.device), attention_mask=mask.long()).logits
        asked = word.to(self.device) >= 0
        # a batch in which chance hid nothing has the loss 0, not NaN
        loss = cross_entropy(logits[asked].float(), ids[asked], reduction="sum") / asked.sum().clamp(min=1)
        if not torch.isfinite(loss):
            raise InputError(
                f"train/loss must stay finite, got {loss.item()} at step {self.global_step}; lower task.lr"
            )
        self.log("train/loss", loss, prog_bar=True, batch_size=len(ids))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor, Tensor], batch_idx: int) -> None:
        ids, mask, place, word = batch
        logits = self.model(input_ids=ids, attention_mask=mask.long()).logits
        self.surprise.update(
            cross_entropy(logits[torch.arange(len(ids)), place].float(), word, reduction="none")
        )

    def on_validation_epoch_end(self) -> None:
        surprise = torch.as_tensor(self.surprise.compute()).mean()
        self.surprise.reset()
        self.log_dict({f"val/{KEY}": -surprise, "val/pseudo_perplexity": surprise.exp()})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        parameters = list(self.model.parameters())
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.lr)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["halflife"] = {"identity": self.identity}


def pretrain(
    cfg: DictConfig,
    run_dir: Path,
    lr: float,
    weight_decay: float,
    batch_size: int,
    mask_share: float,
    held_out: float,
) -> float:
    """Go on pretraining a masked language model with the log's texts; `RUN_DIR/pretrained` is what came out.

    Args:
        cfg: composed from conf/train.yaml; `READ` is what counts of it.
        run_dir: where everything of this run goes.
        lr, weight_decay, mask_share: see `MaskedWords`.
        batch_size: texts a step and process.
        held_out: fraction of the texts that measure and never train, at most `MOST_HELD_OUT` of them.

    Returns:
        The pseudo-log-likelihood of a held-out token, in nats: −log PPPL.

    Raises:
        InputError: for a model that masks no words, a log without texts, or a setting out of range.
    """
    if HydraConfig.initialized():
        settings.check_read(list(HydraConfig.get().overrides.task), READ, "task=mlm")
    name = cfg.model.get("pretrained")
    if name is None:
        raise InputError("model must be one with a pretrained text encoder for task=mlm; add model=bert_full")
    size = whole("task.batch_size", batch_size, "texts", at_least=1)
    data = instantiate(cfg.data)
    source = pretrained.resolve(name)
    model, tokenizer, new_head = pretrained.load_masked(source)
    most = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 10**9))
    longest = whole("model.max_tokens", cfg.model.max_tokens, "tokens", at_least=3, at_most=most)
    identity = {
        "task": "mlm",
        "task.held_out": f"{held_out:g}",
        "seed": str(cfg.seed),
        "data": f"the log with fingerprint {data.store.about['fingerprint']}",
        "data.split": data.split.name,
        "model.pretrained": f"the model with weights {pretrained.weights_key(source)[:16]}",
        "model.max_tokens": str(longest),
    }
    module = MaskedWords(model, tokenizer, mask_share, lr, weight_decay, cfg.seed, identity)
    if cfg.ckpt is not None:
        read_checkpoint(cfg.ckpt, identity)
    ids, start = data.store.tokens(name, longest)
    train, val = (
        Texts(ids, start, rows, tokenizer.pad_token_id)
        for rows in split_texts(data, ids, start, tokenizer.all_special_ids, held_out, cfg.seed)
    )
    checkpoint = ModelCheckpoint(
        run_dir / "checkpoints", filename="last", enable_version_counter=False, save_on_train_epoch_end=True
    )
    trainer = instantiate(cfg.trainer)(
        callbacks=[checkpoint],
        logger=instantiate(cfg.logger)(save_dir=str(run_dir)) if cfg.get("logger") else False,
        default_root_dir=run_dir,
        enable_progress_bar=tracking.on_terminal(),
    )
    tokens = HiddenTokens(val, tokenizer.all_special_ids, tokenizer.mask_token_id)
    rank, world = trainer.global_rank, trainer.world_size
    batches = DataLoader(
        train,
        sampler=BatchRows(np.arange(len(train.start)), train.length.__getitem__, size, cfg.seed, rank, world),
        batch_size=None,
    )
    measured = DataLoader(
        tokens,
        sampler=BatchRows(np.arange(len(tokens)), None, MEASURED_ROWS, cfg.seed, rank, world),
        batch_size=None,
    )
    with loggers.closing(trainer.logger), tracking.child_processes(run_dir):
        if trainer.logger:
            trainer.logger.log_hyperparams(loggers.flatten(cfg))
        found: dict[str, Any] = {}
        for when in ("before", "after"):
            if when == "after":
                trainer.fit(module, batches, measured, ckpt_path=cfg.ckpt, weights_only=False)
            trainer.validate(module, measured, verbose=False)
            found |= {f"{k}_{when}": float(v) for k, v in trainer.callback_metrics.items() if k[:4] == "val/"}
        if trainer.is_global_zero:
            found |= {
                "data/texts_trained_on": len(train.start),
                "data/texts_held_out": len(val.start),
                "data/tokens_held_out": len(tokens),
                "data/fingerprint": data.store.about["fingerprint"],
                "params/trainable": sum(p.numel() for p in model.parameters()),
                "memory/peak_mib": peak_mib(),
            }
            finish(found, run_dir, model, tokenizer, new_head)
    return float(found[f"val/{KEY}_after"])


def split_texts(
    data: DataModule, ids: Array, start: Array, special: list[int], held_out: float, seed: int
) -> tuple[Array, Array]:
    """Rows of the catalogue to train on and to hold out.

    Items that appear behind the training split are in neither: the run that recommends with this model shall
    not have read them. Of texts with the same tokens one is taken: no held-out text has a twin in training.

    Args:
        data: the log and its split.
        ids, start: tokens of the catalogue.
        special: ids that are no words.
        held_out: fraction of the texts, in (0, 0.5].
        seed: of the draw.

    Raises:
        InputError: when fewer than two different texts are there.
    """
    share = number("task.held_out", held_out, "fraction of the texts", above=0, at_most=0.5)
    last = data.store.impression_time[data.rows("train")[-1]]
    born = np.flatnonzero(data.store.item_born <= last)
    words = np.add.reduceat(~np.isin(ids, special), start[:-1]) if len(ids) else np.zeros(len(start) - 1)
    texts = {ids[start[i] : start[i + 1]].tobytes(): i for i in born[::-1] if words[i] > 0}
    if len(texts) < 2:
        raise InputError(
            f"data must hold at least 2 different texts (items of the training split) for task=mlm, got "
            f"{len(texts)} among {len(born)} items; choose a log whose items have words"
        )
    rows = np.random.default_rng(seed).permutation(np.fromiter(texts.values(), np.int64, len(texts))[::-1])
    held = min(MOST_HELD_OUT, max(1, int(share * len(rows))))
    return np.sort(rows[held:]), np.sort(rows[:held])


def finish(found: dict[str, Any], run_dir: Path, model: Any, tokenizer: Any, new_head: bool) -> None:
    """Save model and tokenizer, write metrics.json, and print the last table."""
    place, temporary = run_dir / "pretrained", run_dir / "pretrained.tmp"
    model.save_pretrained(str(temporary))
    tokenizer.save_pretrained(str(temporary))
    temporary.rename(place)
    write_json(run_dir / "metrics.json", found)
    held = f"{found['data/texts_held_out']:,} texts held out"
    table = Table(title=f"Masked words, {held} · model.pretrained={place}")
    if new_head:
        table.caption = "The model came without a head for masked words: before is that of a new one."
    for column in ("", "before", "after"):
        table.add_column(column, justify="left" if not column else "right")
    for label, key, form in (
        ("pseudo-perplexity", "val/pseudo_perplexity", ",.2f"),
        ("log-likelihood of a token (nats)", f"val/{KEY}", ".4f"),
    ):
        table.add_row(label, *(format(found[f"{key}_{when}"], form) for when in ("before", "after")))
    table.add_section()
    for label, key in (
        ("texts trained on", "data/texts_trained_on"),
        ("tokens held out", "data/tokens_held_out"),
        ("parameters that train", "params/trainable"),
        ("peak memory (MiB)", "memory/peak_mib"),
    ):
        table.add_row(label, "", f"{found[key]:,.0f}")
    tracking.write_table(run_dir / "summary.txt", [table])
