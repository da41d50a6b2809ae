"""The subcommands: train, measure, classify, and say where everything is."""

from __future__ import annotations

import json
import shlex
import time
from contextvars import copy_context
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities.combined_loader import CombinedLoader

from resnet_pl import checkpoint as ckpt
from resnet_pl import run_dir as runs
from resnet_pl.analysis.ensemble import Ensemble, check_members
from resnet_pl.callbacks import PreciseBN, PredictionWriter
from resnet_pl.classifier import ImageClassifier
from resnet_pl.cli import protocol
from resnet_pl.cli.parser import ConfiguredCLI, Restored
from resnet_pl.cli.request import Request
from resnet_pl.data import ImageDataModule
from resnet_pl.data.decode import find_images
from resnet_pl.evaluation.metrics import per_class
from resnet_pl.models.pretrained import save_weights
from resnet_pl.patches import ending_at_once, let_go, quieten, short_names, stopping_between_batches, told_plainly
from resnet_pl.reports.pictures import confusion_matrix, save_png
from resnet_pl.reports.results import write_results
from resnet_pl.reports.tables import predictions_table, print_report, results_table
from resnet_pl.utils import on_rank_zero, program, tell


def run(request: Request) -> int:
    """Runs a subcommand; raises UserError where the user can put it right."""
    quieten()
    with short_names(), told_plainly():
        # In a context of its own: jsonargparse's would keep net, data and worker processes until the next command.
        copy_context().run(CLI, request)
    let_go()
    return 0


class CLI(ConfiguredCLI):
    """`fit`, `validate`, `test` and `predict`; LightningCLI calls the method that has the subcommand's name."""

    def fit(self, model: ImageClassifier, datamodule: ImageDataModule, ckpt_path: str | None) -> None:
        """Trains, then says where everything is."""
        start = self.checkpoint["global_step"] if self.checkpoint else 0
        try:
            with self._kept_if_trained(), stopping_between_batches(self.trainer):
                self.trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
        except SystemExit as end:
            last = self.run / "checkpoints" / "last.ckpt"
            if last.exists():
                tell(f"stopped; go on with: {program()} fit --ckpt_path {shlex.quote(str(last))}")
            raise SystemExit(end.code if end.code in (130, 143) else 130) from end
        if self.trainer.global_step == start:
            tell("nothing was trained: the run is already that long; raise --trainer.max_epochs or --trainer.max_steps")
        on_rank_zero(self._close)

    def _close(self) -> None:
        best, last = (self.run / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
        scores = [c.best_model_score for c in self.trainer.checkpoint_callbacks if c.monitor == "val/top1"]
        score = next((float(score) for score in scores if score is not None), None)
        if score is not None:
            print(f"best validation top-1 {score:.2%}")
        if best.exists() or last.exists():
            print(f"test it:    {program()} test --ckpt_path {shlex.quote(str(best if best.exists() else last))}")
        print(f"look at it: tensorboard --logdir {self.run.parent.parent}")

    def validate(self, model: ImageClassifier, datamodule: ImageDataModule, ckpt_path: str) -> None:
        """Measures on the validation images."""
        self._evaluate("val", self.trainer.validate, model, datamodule, ckpt_path)

    def test(self, model: ImageClassifier, datamodule: ImageDataModule, ckpt_path: str) -> None:
        """Measures on the test images."""
        self._evaluate("test", self.trainer.test, model, datamodule, ckpt_path)

    def _evaluate(self, split: str, measure: Any, model: ImageClassifier, data: ImageDataModule, path: str) -> None:
        settings = self.config[self.subcommand]
        protocol.check(settings)
        self._prepare(data, split)
        members = [(self._tested, model, data), *self._other_members()]
        for _, net, own in members:
            protocol.apply(settings, net, own)
        if settings["precise_bn"]:
            pairs = [(net, own) for _, net, own in members]
            self.trainer.callbacks.append(PreciseBN(pairs, settings["precise_bn"]))
        start = time.perf_counter()
        with ending_at_once(self.trainer):
            if len(members) > 1:
                results = self._measure_together(members, split, measure)
            else:
                measure(model, datamodule=data, ckpt_path=path, verbose=False, weights_only=True)
                results = dict(model.results)
        confusion = results.pop("confusion")
        results["per_class"] = per_class(confusion, model.class_names)
        checkpoint = self.checkpoint or {}
        results |= {
            "protocol": self._protocol(data, results["images"], len(data.split(split)), [n for n, *_ in members[1:]]),
            "split": split,
            "data": data.describe(),
            "tested_on": data.told(split),
            "checkpoint": self._tested,
            "epoch": checkpoint.get("epoch"),
            "step": checkpoint.get("global_step"),
            "precision": str(self.trainer.precision),
            "seconds": round(time.perf_counter() - start, 2),
            "versions": ckpt.versions(),
        }
        on_rank_zero(self._tell_results, results, confusion.numpy())
        if settings["save_to"]:
            on_rank_zero(self._keep, model, checkpoint, Path(settings["save_to"]))

    def _keep(self, model: ImageClassifier, checkpoint: dict[str, Any], path: Path) -> None:
        """Writes what was tested: the checkpoint, or the weights of its net alone."""
        if path.suffix == ".safetensors":
            mean, std = (getattr(model.normalize, name).flatten().tolist() for name in ("mean", "std"))
            words = {"classes": model.class_names, "mean": mean, "std": std}
            save_weights(model.backbone, path, {name: json.dumps(each) for name, each in words.items()})
        else:
            state = {key: value.cpu() for key, value in model.state_dict().items()}
            ckpt.SafeCheckpointIO().save_checkpoint(checkpoint | {"state_dict": state}, path)
        print(f"kept as {path}")

    @property
    def _tested(self) -> str:
        """What is tested, in a word: the checkpoint as its run names it, or published weights."""
        path = self.request.checkpoint
        if path is None:
            return f"weights {self.model.weights}"
        run = runs.run_of(path)
        return path.absolute().relative_to(run.absolute()).as_posix() if run else str(path)

    def _other_members(self) -> list[tuple[str, ImageClassifier, ImageDataModule]]:
        """Name, net and data of an ensemble's other members; what the line says of the data holds for all of them."""
        words, options = [*self.request.options, "--"], []
        for word, following in pairwise(words):
            if word.startswith("--data"):
                options += [word] if "=" in word or following.startswith("--") else [word, following]
        members = []
        for path in self.config[self.subcommand]["ensemble"] or []:
            other = Restored(path, options)
            if other.request.checkpoint.resolve() != self.request.checkpoint.resolve():
                other.datamodule.trainer = self.trainer
                members.append((str(path), other.model, other.datamodule))
        return members

    def _measure_together(self, members: list[Any], split: str, measure: Any) -> dict[str, Any]:
        _, model, data = members[0]
        check_members([(str(self.request.checkpoint), model, data), *members[1:]], split)
        model.configure_model()
        model.load_state_dict(self.checkpoint["state_dict"])
        data.trainer = self.trainer
        # Every loader gives the same images in the same order, each as its own net wants them.
        loaders = [own.val_dataloader() if split == "val" else own.test_dataloader() for *_, own in members]
        ensemble = Ensemble([net for _, net, _ in members])
        measure(ensemble, dataloaders=CombinedLoader(loaders, "min_size"), verbose=False)
        return dict(ensemble.results)

    def _protocol(self, data: ImageDataModule, tested: int, there_are: int, others: list[str]) -> str:
        """How it was tested, with what differs from the training's own way, so that no result replaces another."""
        trained = (self.checkpoint or {ckpt.KEY: {}})[ckpt.KEY].get("config") or {}
        precision = self.config[self.subcommand]["trainer"]["precision"]
        size = ((trained.get("data") or {}).get("init_args") or {}).get("image_size", data.image_size)
        parts = protocol.told(self.config[self.subcommand], data, others)
        parts += [f"image_size {data.image_size}"] if data.image_size != size else []
        parts += [f"precision {precision}"] if precision != (trained.get("trainer") or {}).get("precision") else []
        parts += [f"{tested} of {there_are} images"] if tested != there_are else []
        return ", ".join(parts)

    def _tell_results(self, results: dict[str, Any], confusion: np.ndarray) -> None:
        suffix = "" if results["split"] == "test" else "-val"
        place, picture = self.output / f"results{suffix}.json", self.output / f"confusion{suffix}.png"
        print_report(results_table(results))
        write_results(results, place)
        save_png(confusion_matrix(confusion, list(results["per_class"])), picture)
        print(f"written to {place} and {picture}")

    def predict(self, model: ImageClassifier, datamodule: ImageDataModule, ckpt_path: str) -> None:
        """Classifies images."""
        images = self.config[self.subcommand]["images"]
        if images:
            datamodule.predict_on(find_images(images))
        else:
            self._prepare(datamodule, "test")
        with ending_at_once(self.trainer):
            self.trainer.predict(
                model, datamodule=datamodule, ckpt_path=ckpt_path, return_predictions=False, weights_only=True
            )
        on_rank_zero(self._tell_predictions)

    def _tell_predictions(self) -> None:
        writer = next(callback for callback in self.trainer.callbacks if isinstance(callback, PredictionWriter))
        # Three classes fit on a line; the file has as many as were asked for.
        print_report(predictions_table(writer.rows, min(3, self.config[self.subcommand]["top_k"])))
        drawn = f" (the first {writer.sheet} of {len(writer.rows):,})" if len(writer.rows) > writer.sheet else ""
        print(f"written to {self.output / 'predictions.csv'} and {self.output / 'contact_sheet.png'}{drawn}")

    def _prepare(self, data: ImageDataModule, split: str) -> None:
        """Finds the images, and says in the first line which they are."""
        data.prepare_data()
        data.setup(self.subcommand)
        images = data.split(split)
        tell(
            f"{self.subcommand}: {len(images):,} images, {data.told(split)}; {self.request.checkpoint or self._tested}"
        )
