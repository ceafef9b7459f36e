"""Under Lightning's Trainer: clipping, schedules, autocast, a loss scaler; resumed as if never stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lionbits import Lion, Lion8bit

from .tiny import OTHERS_MAY_WARN, SETTINGS, assert_same, outcome, tool

lightning = tool("lightning")
pytestmark = OTHERS_MAY_WARN


def module(optimizer_class: type[Lion]) -> Any:
    """A LightningModule with the same weights at every call; Lion with a schedule that steps with it."""

    class Autoencoder(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(40, 64), nn.GELU(), nn.Linear(64, 40))

        def training_step(self, x: Tensor, _: int) -> Tensor:
            return (self.layers(x) - x).square().mean()

        def configure_optimizers(self) -> Any:
            optimizer = optimizer_class(self.parameters(), **SETTINGS)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=6, cycle_momentum=False)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    return Autoencoder()


def fit(folder: Path, model: Any, precision: Any = "32-true", resume: Path | None = None, **more: Any) -> Any:
    """Two epochs of three steps, saved after each."""
    data = DataLoader(torch.randn(24, 40, generator=torch.Generator().manual_seed(1)), batch_size=8)
    keep = lightning.pytorch.callbacks.ModelCheckpoint(folder, "{step}", every_n_epochs=1, save_top_k=-1)
    plugins = None if isinstance(precision, str) else [precision]
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=2,
        precision=precision if plugins is None else None,
        plugins=plugins,
        callbacks=[keep],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **more,
    )
    trainer.fit(model, data, ckpt_path=None if resume is None else str(resume))
    return trainer.optimizers[0]


def scaled() -> Any:
    """float16 autocast with a loss scaler, on the CPU."""
    from lightning.pytorch.plugins import MixedPrecision

    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))


@pytest.mark.parametrize(
    ("precision", "clipping"),
    [("32-true", {"gradient_clip_val": 0.01}), ("bf16-mixed", {}), (scaled, {})],
    ids=["float32", "bfloat16 autocast", "float16 with a scaler"],
)
def test_a_resumed_fit_equals_the_uninterrupted_one(
    tmp_path: Path, optimizer_class: type[Lion], precision: Any, clipping: dict[str, Any]
) -> None:
    """``ckpt_path`` continues model, optimizer, schedule and scaler, bit for bit."""
    whole, resumed = module(optimizer_class), module(optimizer_class)
    chosen = precision if isinstance(precision, str) else precision()
    first = fit(tmp_path / "whole", whole, chosen, **clipping)
    assert type(first) is optimizer_class
    chosen = precision if isinstance(precision, str) else precision()
    saved = tmp_path / "whole" / "step=3.ckpt"
    second = fit(tmp_path / "resumed", resumed, chosen, saved, **clipping)
    assert_same(outcome(resumed, second), outcome(whole, first))
    assert not (tmp_path / "resumed" / "step=3.ckpt").exists()  # it did continue, rather than begin


@pytest.mark.parametrize(
    "precision", [lambda: "bf16-mixed", scaled], ids=["bfloat16 autocast", "float16 with a scaler"]
)
def test_clipping_under_autocast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Callable[[], Any]) -> None:
    """Lightning refuses to clip for an optimizer that can unscale gradients, until that is switched off for it."""
    with pytest.raises(RuntimeError, match="Lion8bit, does not allow for gradient clipping"):
        fit(tmp_path / "refused", module(Lion8bit), precision(), gradient_clip_val=0.01)
    model = module(Lion8bit)
    configured = model.configure_optimizers()
    configured["optimizer"]._step_supports_amp_scaling = False
    monkeypatch.setattr(model, "configure_optimizers", lambda: configured)
    optimizer = fit(tmp_path / "clipped", model, precision(), gradient_clip_val=0.01)
    norms = torch.stack([param.grad.norm() for param in model.parameters()])
    assert norms.norm().item() == pytest.approx(0.01, rel=1e-3)  # of the last step: unscaled, then clipped
    assert outcome(model, optimizer)["state"]["layers.0.weight"]["step"] == 6
