"""Four-step alternating training: what each step trains, starts from and leaves; stopped anywhere and resumed.

Truths: weights files compared bit by bit, an unbroken run, joint training's own losses on the same samples.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

import detres.training.loop as loop
from detres.cli import train_det
from detres.config import Length, load_config
from detres.data.detection_samples import DetectionDataset, collate_detection
from detres.data.preprocessing import TORCHVISION
from detres.data.proposals import Proposals
from detres.data.shapes import shapes_annotations
from detres.detection import alternating
from detres.detection.build import build_detector, detector_from_tensors
from detres.detection.config import DetectionConfig
from detres.detection.data import TrainingData
from detres.detection.faster_rcnn import FasterRCNN
from detres.detection.losses import rcnn_losses, rpn_losses, training_losses
from detres.detection.task import build_detector_task
from detres.detection.train import read_training, train_detector
from detres.errors import ConfigError, DataError, UserError
from detres.tasks.start import Start
from detres.training.run_folder import RunFolder
from detres.weights.checkpoint import Metadata, read_weights

CPU = torch.device("cpu")
SETTINGS = [
    "data.train=[{dir: 'shapes:5', split: train}]",
    "data.val=[{dir: 'shapes:2', split: val}]",
    "data.short_side=96",
    "data.long_side=128",
    "model.network={name: resnet18, width: 0.125}",
    "model.pooler=roi_align",
    "model.freeze_at=1",
    "rpn.channels=16",
    "rpn.anchor_sizes=[16, 32, 64]",
    "rpn.batch_size_per_image=32",
    "rpn.pre_nms_top_n=100",
    "rpn.proposals=20",
    "rpn.min_size=2",
    "rcnn.batch_size_per_image=8",
    "train.mode=alternating",
    "train.lr=0.05",
    "train.warmup_iterations=0",
    "train.length=3 iterations",
    "train.rcnn_stage.length=2 iterations",
    "train.evaluate_every=1 iterations",
    "train.checkpoint_every=1 iterations",
    "train.log_every=1",
    "train.workers=0",
    "test.proposals=10",
]
NAMES = [step.name for step in alternating.STEPS]


def configured(*more: str) -> DetectionConfig:
    return load_config(DetectionConfig, None, [*SETTINGS, *more])


def run_in(path: Path, config: DetectionConfig, *, resume: bool = False) -> dict[str, float | None]:
    data, start = read_training(config, CPU, path if resume else None)
    with RunFolder.open(path, config, resume=resume) as run:
        return train_detector(config, data, start, run, CPU, resume=resume, quiet=True)


def read_detector(path: Path) -> tuple[FasterRCNN, Metadata]:
    tensors, metadata = read_weights(path)
    return detector_from_tensors(tensors, metadata, str(path))[0], metadata


def weights(run: Path, step: str) -> dict[str, torch.Tensor]:
    return read_weights(run / "steps" / step / "model.safetensors")[0]


def part(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module", params=[False, True], ids=["", "context"])
def context(request) -> str:
    """Without and with global context, as `--set` takes it."""
    return f"model.global_context={str(request.param).lower()}"


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, context) -> Path:
    path = tmp_path_factory.mktemp("alternating") / "run"
    figures = run_in(path, configured(context))
    assert "AP" in figures
    return path


def test_steps_3_and_4_leave_the_trunk_bit_equal(unbroken):
    one, two, three, four = (weights(unbroken, name) for name in NAMES)
    assert same(part(three, "trunk"), part(two, "trunk"))
    assert same(part(four, "trunk"), part(two, "trunk"))
    assert not same(part(one, "trunk"), part(two, "trunk"))


def test_each_step_trains_its_own_and_starts_where_it_should(unbroken, context):
    one, two, three, four = (weights(unbroken, name) for name in NAMES)
    config = configured(context)
    data = TrainingData(shapes_annotations("train", 5), None)
    network = build_detector_task(config, data, Start(config.model.network), CPU).network
    initial = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert same(part(one, "roi_head"), part(initial, "roi_head"))
    assert same(part(two, "rpn"), part(initial, "rpn"))
    assert same(part(three, "roi_head"), part(two, "roi_head"))
    assert same(part(four, "rpn"), part(three, "rpn"))
    for before, after, name in ((initial, one, "rpn"), (initial, two, "roi_head"), (two, three, "rpn"),
                                (three, four, "roi_head")):  # fmt: skip
        assert not same(part(before, name), part(after, name))
    assert same(part(one, "trunk.conv1"), part(initial, "trunk.conv1")), "frozen by model.freeze_at"
    assert not same(part(two, "trunk.layer1"), part(initial, "trunk.layer1"))


def test_the_whole_detector_is_put_together(unbroken):
    assert (unbroken / "model.safetensors").read_bytes() == (
        unbroken / "steps" / NAMES[-1] / "model.safetensors"
    ).read_bytes()
    network, metadata = read_detector(unbroken / "model.safetensors")
    assert metadata.class_names == shapes_annotations("train", 1).class_names
    assert same(dict(network.state_dict()), weights(unbroken, NAMES[-1]))
    log = (unbroken / "log.txt").read_text()
    for number, step in enumerate(alternating.STEPS, start=1):
        assert f"step {number} of 4, {step.title}: done" in log
    assert log.count("proposals per training image reach IoU 0.5") == 2


def test_lengths_of_the_steps(unbroken):
    ends = [(unbroken / "steps" / name / "last").read_text().strip() for name in NAMES]
    assert ends == ["checkpoints/3", "checkpoints/2", "checkpoints/3", "checkpoints/2"]
    train = configured("train.rcnn_stage.batch=4", "train.rpn_stage.lr=1").train
    assert (train.for_stage("rcnn").batch, train.for_stage("rcnn").lr) == (4, 0.05)
    assert (train.for_stage("rpn").batch, train.for_stage("rpn").lr) == (train.batch, 1)
    assert train.for_stage("rcnn").length == Length(2, "iterations")


def test_all_steps_are_planned_before_the_first_one_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "train_step", lambda *_: pytest.fail("the training has begun"))
    with pytest.raises(ConfigError, match="do not rise"):
        run_in(tmp_path / "run", configured("train.rcnn_stage.milestones=[2 iterations, 1 iterations]"))
    assert not (tmp_path / "run").exists()


def test_only_the_last_step_is_evaluated_and_says_so(unbroken):
    log = (unbroken / "log.txt").read_text()
    assert (log.count("evaluated never"), log.count("evaluated every 1")) == (3, 1)
    for name in NAMES:
        assert ("val/AP" in (unbroken / "steps" / name / "metrics.jsonl").read_text()) == (name == NAMES[-1])


class Killed(BaseException):
    pass


def test_stopped_anywhere_and_resumed(unbroken, context, tmp_path, monkeypatch):
    """Dies at one optimizer step after another, while proposals are made, and stops at Ctrl-C; ends bit-equal."""
    run, inner = tmp_path / "run", loop.train_step
    taken = 0

    def dying(task, config, plan, state, *rest):
        nonlocal taken
        taken += 1
        if taken > 1:
            raise Killed
        return inner(task, config, plan, state, *rest)

    monkeypatch.setattr(loop, "train_step", dying)
    for _ in range(5):  # one optimizer step further each time: into step 2
        taken = 0
        with pytest.raises(Killed):
            run_in(run, configured(context), resume=True)
    assert (run / "steps" / NAMES[1] / "last").exists()
    monkeypatch.setattr(loop, "train_step", inner)

    def interrupted(task, config, plan, state, *rest):
        if task.stage == "rpn":
            os.kill(os.getpid(), signal.SIGINT)
        return inner(task, config, plan, state, *rest)

    monkeypatch.setattr(loop, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):  # in step 3
        run_in(run, configured(context), resume=True)
    assert (run / "steps" / NAMES[2] / "last").read_text() == "checkpoints/1\n"
    monkeypatch.setattr(loop, "train_step", inner)
    made = alternating.propose

    monkeypatch.setattr(alternating, "propose", _killed)
    with pytest.raises(Killed):
        run_in(run, configured(context), resume=True)
    assert [path.name for path in (run / "steps" / NAMES[2]).glob("*proposals*")] == []
    monkeypatch.setattr(alternating, "propose", made)
    run_in(run, configured(context), resume=True)
    for name in NAMES:
        assert same(weights(run, name), weights(unbroken, name)), name
    before = (run / "model.safetensors").read_bytes()
    assert before == (unbroken / "model.safetensors").read_bytes()
    assert run_in(run, configured(context), resume=True).keys() >= {"AP", "mAP"}, (
        "finished: gives its figures again"
    )
    assert (run / "model.safetensors").read_bytes() == before


def test_a_step_that_is_done_keeps_its_length(tmp_path, monkeypatch):
    run, made = tmp_path / "run", alternating.propose
    monkeypatch.setattr(alternating, "propose", _killed)
    with pytest.raises(Killed):
        run_in(run, configured())
    monkeypatch.setattr(alternating, "propose", made)
    with pytest.raises(
        ConfigError, match="step 1 of 4, RPN from the initial weights, is done after 3 iterations"
    ):
        run_in(run, configured("train.length=4 iterations"), resume=True)


def test_the_tool_refuses_before_it_touches_a_run(tmp_path, monkeypatch):
    """Neither `--resume` nor `--overwrite` changes a byte of the run that is there."""
    run = tmp_path / "run"
    monkeypatch.setattr(alternating, "propose", _killed)
    with pytest.raises(Killed):
        run_in(run, configured())
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    settings = [argument for setting in SETTINGS for argument in ("--set", setting)]
    for how, more, message in (
        ("--resume", "train.length=4 iterations", "step 1 of 4"),
        ("--overwrite", "train.rcnn_stage.milestones=[2 iterations, 1 iterations]", "do not rise"),
        ("--overwrite", "model.init_classes={a: b}", "no detector's weights"),
    ):
        with pytest.raises(UserError, match=message):
            train_det.main([*settings, "--set", more, "--out", str(run), "--device", "cpu", how, "--quiet"])
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_an_interrupt_in_the_last_iteration_of_a_step_stops_too(unbroken, context, tmp_path, monkeypatch):
    run, inner, taken = tmp_path / "run", loop.train_step, 0

    def interrupted(*arguments):
        nonlocal taken
        taken += 1
        if taken == 3:  # of the three of step 1
            os.kill(os.getpid(), signal.SIGINT)
        return inner(*arguments)

    monkeypatch.setattr(loop, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_in(run, configured(context))
    assert taken == 3
    assert same(weights(run, NAMES[0]), weights(unbroken, NAMES[0]))
    assert not (run / "steps" / NAMES[0] / "proposals.safetensors").exists()


def _killed(*arguments):
    raise Killed


def test_a_fault_in_a_later_step_costs_no_earlier_one(tmp_path, monkeypatch):
    def at_fault(*arguments):
        raise UserError("a picture is gone")

    monkeypatch.setattr("detres.detection.task.rcnn_losses", at_fault)
    with pytest.raises(UserError, match="a picture is gone"):
        run_in(tmp_path / "run", configured())
    assert (tmp_path / "run" / "steps" / NAMES[0] / "model.safetensors").exists()
    assert not (tmp_path / "run" / "steps" / NAMES[1]).exists()
    run_again = RunFolder.open(tmp_path / "run", configured(), overwrite=True)
    run_again.close()
    assert not (tmp_path / "run" / "steps").exists()


def test_the_losses_are_those_of_joint_training(unbroken, context):
    """With everything sampled that there is, order and proposals being the same, the four losses agree."""
    config = configured(
        context,
        "rpn.batch_size_per_image=100000",
        "rcnn.batch_size_per_image=100000",
        "data.augmentation.flip=0",
    )
    annotations = shapes_annotations("train", 5)
    network, _ = read_detector(unbroken / "model.safetensors")
    rpn, rcnn = config.rpn, config.rcnn
    proposals = Proposals(unbroken / "steps" / "3_rpn" / "proposals.safetensors", annotations)
    dataset = DetectionDataset(annotations, 96, 128, proposals=proposals)
    samples = collate_detection([dataset[0], dataset[1]])
    images = [sample.image for sample in samples]
    given = [sample.proposals for sample in samples if sample.proposals is not None]

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    with torch.no_grad():
        ours = {
            **rpn_losses(network(images), samples, rpn, rcnn, seeded()),
            **rcnn_losses(network, network.maps(images), given, samples, rcnn, seeded()),
        }
        joint = training_losses(network, samples, rpn, rcnn, seeded())
    assert ours.keys() == joint.keys()
    for name, loss in joint.items():
        assert ours[name].item() == pytest.approx(loss.item(), rel=1e-3), name


def test_the_region_step_trains_global_context(unbroken):
    """Both halves of the class layer get a gradient: the region's own feature and the whole image's."""
    config = configured("model.global_context=true")
    annotations = shapes_annotations("train", 5)
    classes = len(annotations.class_names)
    network = build_detector(config.architecture(config.model.network), classes, TORCHVISION)
    proposals = Proposals(unbroken / "steps" / "3_rpn" / "proposals.safetensors", annotations)
    samples = collate_detection([DetectionDataset(annotations, 96, 128, proposals=proposals)[0]])
    maps = network.maps([sample.image for sample in samples])
    given = [sample.proposals for sample in samples if sample.proposals is not None]
    generator = torch.Generator().manual_seed(0)
    losses = rcnn_losses(network, maps, given, samples, config.rcnn, generator)
    losses["classifier"].backward()
    gradient = network.roi_head.box_predictor.cls_score.weight.grad
    assert gradient is not None
    assert all(half.abs().max() > 0 for half in gradient.chunk(2, dim=1))


def test_proposals_of_other_data_are_refused(unbroken):
    path = unbroken / "steps" / "1_rpn" / "proposals.safetensors"
    with pytest.raises(DataError, match="proposals for other pictures"):
        Proposals(path, shapes_annotations("train", 4))
