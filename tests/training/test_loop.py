"""The loop: repeatable, resumable, and the same as torch's own optimizer driven by hand.

Truth: an unbroken run (bit-equal), a plain loop written in the test, hand-worked means.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_task
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from detres.errors import DataError, DivergedError, UserError

TIMES = {"seconds", "images_per_second", "data/wait_share", "memory_mib"}


def metrics(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl without the figures that depend on the clock and the machine."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def final_state(folder: Path) -> dict:
    return torch.load(folder / (folder / "last").read_text().strip() / "state.pt", weights_only=True)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    tiny_task.run(folder, ema=0.9, clip=1.0)
    return folder


def assert_same_run(folder: Path, unbroken: Path) -> None:
    assert metrics(folder) == metrics(unbroken)
    ours, theirs = final_state(folder), final_state(unbroken)
    assert_same(ours["network"], theirs["network"])
    assert_same(ours["average"], theirs["average"])
    for index, slot in theirs["optimizer"]["state"].items():
        assert torch.equal(ours["optimizer"]["state"][index]["momentum_buffer"], slot["momentum_buffer"])
    assert ours["best"] == theirs["best"]
    assert_same(load_file(folder / "model.safetensors"), load_file(unbroken / "model.safetensors"))
    assert (folder / "best").read_text() == (unbroken / "best").read_text()


def test_metrics_and_files(unbroken: Path) -> None:
    lines = metrics(unbroken)
    assert [line["step"] for line in lines] == [4, 5, 8, 10, 12, 12]
    logged = lines[1]
    assert logged["loss"] == pytest.approx(logged["loss/near"] + logged["loss/sampled"])
    assert logged["images"] == 10
    assert logged["epoch"] == pytest.approx(10 / 7, abs=1e-4)
    evaluated = lines[0]
    assert evaluated["val/loss/near"] == 1.5
    assert evaluated["val/none"] is None
    assert (unbroken / "last").read_text() == "checkpoints/12\n"
    best = max((line for line in lines if "val/score" in line), key=lambda line: line["val/score"])
    assert (unbroken / "best").read_text() == f"checkpoints/{best['step']}\n"
    assert list((unbroken / "tensorboard").glob("events.*"))
    assert "trained 12 steps, 24 images" in (unbroken / "log.txt").read_text()


def test_same_seed_twice_is_bit_equal_and_another_is_not(tmp_path: Path, unbroken: Path) -> None:
    tiny_task.run(tmp_path / "same", ema=0.9, clip=1.0)
    assert_same_run(tmp_path / "same", unbroken)
    tiny_task.run(tmp_path / "other", ema=0.9, clip=1.0, seed=4)
    assert metrics(tmp_path / "other") != metrics(unbroken)


@pytest.mark.parametrize("step", [1, 2, 4, 5, 9, 12])
def test_broken_off_in_any_step_and_resumed_equals_unbroken(
    tmp_path: Path, unbroken: Path, step: int
) -> None:
    def stop() -> None:
        raise RuntimeError("power cut")

    made = tiny_task.interrupted(tiny_task.task(tiny_task.network()), step, stop)
    with pytest.raises(RuntimeError, match="power cut"):
        tiny_task.run(tmp_path, made=made, ema=0.9, clip=1.0)
    tiny_task.run(tmp_path, resume=True, ema=0.9, clip=1.0)
    assert_same_run(tmp_path, unbroken)


def start(folder: Path, **options: object) -> int:
    command = [
        sys.executable,
        tiny_task.__file__,
        str(folder),
        json.dumps({"ema": 0.9, "clip": 1.0} | options),
    ]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        command, timeout=100, check=False, env=environment, start_new_session=True
    ).returncode


def test_killed_and_resumed_with_workers_equals_unbroken(tmp_path: Path, unbroken: Path) -> None:
    assert start(tmp_path, kill_at=8, workers=2) == -9
    tiny_task.run(tmp_path, resume=True, ema=0.9, clip=1.0, workers=1)
    assert_same_run(tmp_path, unbroken)


def test_sigterm_finishes_the_step_and_saves(tmp_path: Path, unbroken: Path) -> None:
    assert start(tmp_path, terminate_at=5, workers=2) == 130
    assert (tmp_path / "last").read_text() == "checkpoints/5\n"
    tiny_task.run(tmp_path, resume=True, ema=0.9, clip=1.0)
    assert_same_run(tmp_path, unbroken)


def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    made = tiny_task.interrupted(tiny_task.task(tiny_task.network()), 5, twice)
    with pytest.raises(KeyboardInterrupt):
        tiny_task.run(tmp_path, made=made)
    assert (tmp_path / "last").read_text() == "checkpoints/4\n"


def test_broken_off_in_an_evaluation_and_resumed_equals_unbroken(tmp_path: Path, unbroken: Path) -> None:
    """The first signal in an evaluation stops at once; the resumed run begins with that evaluation."""
    made = tiny_task.task(tiny_task.network())
    made.validation_losses = lambda _: signal.raise_signal(signal.SIGTERM) or {}
    with pytest.raises(KeyboardInterrupt):
        tiny_task.run(tmp_path, made=made, ema=0.9, clip=1.0)
    assert (tmp_path / "last").read_text() == "checkpoints/4\n"
    assert not (tmp_path / "best").exists()
    tiny_task.run(tmp_path, resume=True, ema=0.9, clip=1.0)
    assert_same_run(tmp_path, unbroken)


def test_killed_between_an_evaluation_and_its_checkpoint(tmp_path: Path, unbroken: Path) -> None:
    """Its line of metrics is written once, whatever was there."""

    def stop(network: nn.Module, path: Path) -> None:
        raise RuntimeError("power cut")

    made = tiny_task.task(tiny_task.network(), export=stop)
    with pytest.raises(RuntimeError, match="power cut"):
        tiny_task.run(tmp_path, made=made, ema=0.9, clip=1.0)
    assert [line["step"] for line in metrics(tmp_path)] == [4]
    tiny_task.run(tmp_path, resume=True, ema=0.9, clip=1.0)
    assert_same_run(tmp_path, unbroken)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_result(tmp_path: Path, unbroken: Path, workers: int) -> None:
    tiny_task.run(tmp_path, ema=0.9, clip=1.0, workers=workers)
    assert_same_run(tmp_path, unbroken)


def test_the_callers_random_state_is_left_alone(tmp_path: Path) -> None:
    made = tiny_task.task(tiny_task.network())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tiny_task.run(tmp_path, made=made)
    assert torch.equal(torch.rand(3), expected)


def test_accumulation_of_two_equals_a_batch_of_two(tmp_path: Path) -> None:
    def plain_task() -> tiny_task.TinyTask:
        model = tiny_task.network(batch_norm=False, dropout=0.0)
        return tiny_task.task(
            model, losses=lambda batch, _: {"square": (model(batch[0]) - batch[1]).square().mean()}
        )

    one, _ = tiny_task.run(tmp_path / "one", made=plain_task(), batch=2)
    two, _ = tiny_task.run(tmp_path / "two", made=plain_task(), batch=1, accumulate=2)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert a == pytest.approx(b, abs=1e-5)


def test_equals_a_plain_loop(tmp_path: Path) -> None:
    """Warm-up, milestone, clipping and averaging, written out by hand around torch's SGD."""
    from detres.data.batching import KeyBatches

    def square(model: nn.Module, batch: tuple) -> Tensor:
        return (model(batch[0]) - batch[1]).square().mean()

    ours = tiny_task.network(batch_norm=False, dropout=0.0)
    made = tiny_task.task(ours, losses=lambda batch, _: {"square": square(ours, batch)})
    tiny_task.run(tmp_path, made=made, clip=0.5, ema=0.5, base_batch_size=4, weight_decay=0.01)

    theirs = tiny_task.network(batch_norm=False, dropout=0.0)
    average = tiny_task.network(batch_norm=False, dropout=0.0)
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    warmup = [0.1, 0.4, 0.7]  # 0.1 + 0.9 * t / 3
    for t, keys in enumerate(KeyBatches(7, 2, seed=3, stop=12)):
        for group in sgd.param_groups:
            group["lr"] = 0.05 * 2 / 4 * (warmup[t] if t < 3 else 1.0 if t < 9 else 0.1)
        sgd.zero_grad()
        square(theirs, tiny_task.collate([tiny_task.Samples()[key] for key in keys])).backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        sgd.step()
        decay = min(0.5, (2 + t) / (11 + t))
        for a, p in zip(average.parameters(), theirs.parameters(), strict=True):
            a.data = decay * a.data + (1 - decay) * p.data
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    saved = final_state(tmp_path)["average"]
    for a, b in zip(saved.values(), average.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_export_is_the_best_evaluated_network(tmp_path: Path) -> None:
    scores = iter([0.2, 0.7, 0.5])
    exported = []
    made = tiny_task.task(
        tiny_task.network(),
        evaluate=lambda _: {"score": next(scores)},
        export=lambda module, path: exported.append(path),
    )
    _, figures = tiny_task.run(tmp_path, made=made)
    assert figures == {"score": 0.7}
    assert exported == [tmp_path / "model.safetensors"] * 2
    assert (tmp_path / "best").read_text() == "checkpoints/8\n"
    assert (tmp_path / "checkpoints/8/state.pt").exists()


def test_lower_is_better(tmp_path: Path) -> None:
    scores = iter([0.2, 0.7, 0.1])
    made = tiny_task.task(
        tiny_task.network(), evaluate=lambda _: {"score": next(scores)}, lower_is_better=True
    )
    assert tiny_task.run(tmp_path, made=made)[1] == {"score": 0.1}


def test_without_evaluation_the_last_network_is_exported(tmp_path: Path) -> None:
    model, figures = tiny_task.run(tmp_path, evaluate_every=None)
    assert_same(load_file(tmp_path / "model.safetensors"), dict(model.state_dict()))
    assert set(figures) == {"near", "sampled"}
    assert not (tmp_path / "best").exists()
    (tmp_path / "model.safetensors").unlink()  # killed after the last checkpoint
    tiny_task.run(tmp_path, evaluate_every=None, resume=True)
    assert_same(load_file(tmp_path / "model.safetensors"), dict(model.state_dict()))


def test_first_batch_is_drawn_once(tmp_path: Path) -> None:
    drawn = []
    made = tiny_task.task(
        tiny_task.network(), draw_first_batch=lambda batch, folder: drawn.append((len(batch[2]), folder))
    )
    tiny_task.run(tmp_path, made=made, length="3 iterations")
    tiny_task.run(tmp_path, made=made, length="6 iterations", resume=True)
    assert drawn == [(2, tmp_path / "images")]


def test_finished_run_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, figures = tiny_task.run(tmp_path)
    written = metrics(tmp_path)
    with caplog.at_level("INFO", "detres"):
        assert tiny_task.run(tmp_path, resume=True)[1] == figures
    assert "finished, all 12 steps" in caplog.text
    assert metrics(tmp_path) == written


def test_longer_length_at_resume_goes_on(tmp_path: Path) -> None:
    tiny_task.run(tmp_path / "a", length="6 iterations", log_every=3)
    tiny_task.run(tmp_path / "a", length="12 iterations", log_every=3, resume=True)
    tiny_task.run(tmp_path / "b", length="12 iterations", log_every=3)
    assert_same(final_state(tmp_path / "a")["network"], final_state(tmp_path / "b")["network"])


def test_not_finite_loss_stops_with_a_dump(tmp_path: Path) -> None:
    model = tiny_task.network(batch_norm=False)
    calls = []

    def losses(batch: tuple, generator: torch.Generator) -> dict[str, Tensor]:
        calls.append(1)
        square = (model(batch[0]) - batch[1]).square().mean()
        return {"good": square, "bad": square * (math.nan if len(calls) == 3 else 1.0)}

    with pytest.raises(DivergedError, match=r"step 3: loss/bad is nan .*image-\d\.jpg.*check_data") as caught:
        tiny_task.run(tmp_path, made=tiny_task.task(model, losses=losses))
    assert caught.value.exit_status == 3
    assert "\n" not in str(caught.value)
    dump = torch.load(tmp_path / "diverged/step-3.pt", weights_only=True)
    assert dump["batches"][0][0].shape == (2, 3, 6, 6)
    figures = json.loads((tmp_path / "diverged/step-3.json").read_text())
    assert figures["images"] == dump["images"] == dump["batches"][0][2]
    assert figures["losses"][0]["bad"] == "nan"
    assert set(figures["gradient_norms"]) == {name for name, _ in model.named_parameters()}


def test_not_finite_gradient_stops_too(tmp_path: Path) -> None:
    model = tiny_task.network(batch_norm=False)
    made = tiny_task.task(
        model, losses=lambda batch, _: {"root": (model(batch[0]) * 0).square().sum().sqrt()}
    )
    with pytest.raises(DivergedError, match="the losses are finite but the gradient"):
        tiny_task.run(tmp_path, made=made)


class Broken(tiny_task.Samples):
    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, str]:
        raise DataError(f"picture {key[1]}.jpg is truncated: fetch it again")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_is_one_line_with_and_without_workers(tmp_path: Path, workers: int) -> None:
    made = tiny_task.task(tiny_task.network(), dataset=Broken())
    with pytest.raises(DataError, match=r"\Apicture \d\.jpg is truncated: fetch it again\Z"):
        tiny_task.run(tmp_path, made=made, workers=workers)


def test_precision(tmp_path: Path) -> None:
    seen = []
    model = tiny_task.network()

    def losses(batch: tuple, generator: torch.Generator) -> dict[str, Tensor]:
        output = model(batch[0])
        seen.append(output.dtype)
        return {"square": (output - batch[1]).square().mean()}

    tiny_task.run(
        tmp_path / "a", made=tiny_task.task(model, losses=losses), precision="bfloat16", length="1 iterations"
    )
    assert seen == [torch.bfloat16]
    with pytest.raises(UserError, match="float16 needs a CUDA device"):
        tiny_task.run(tmp_path / "b", precision="float16")


def test_another_data_set_at_resume_is_refused(tmp_path: Path) -> None:
    tiny_task.run(tmp_path, length="3 iterations")
    made = tiny_task.task(tiny_task.network(), identity={"class names": ["a", "b"]})
    with pytest.raises(UserError, match=r"class names was None, is \['a', 'b'\]"):
        tiny_task.run(tmp_path, made=made, resume=True)


def test_another_network_at_resume_is_refused(tmp_path: Path) -> None:
    tiny_task.run(tmp_path, length="3 iterations")
    with pytest.raises(UserError, match="its network is another one"):
        tiny_task.run(
            tmp_path,
            made=tiny_task.task(tiny_task.network(batch_norm=False)),
            resume=True,
            length="9 iterations",
        )
