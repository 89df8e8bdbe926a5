"""A run that stops and goes on is the run that did not stop; and a checkpoint is whole, or is none."""

import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import torch.distributed as dist

from media.lock import InUse
from models.checkpoint import CheckpointError, load_transformer
from models.recompute import Recompute
from models.transformer import ContentVTransformer
from tests.models.weights import fill
from tests.training.distributed.test_parallel import (
    SIZE,
    adam,
    assert_near,
    four_ranks,
    one_process,
    small_model,
    train_step,
    whole,
)
from training.checkpoint.checkpoints import Checkpoints, NotWritten, State, last_checkpoint
from training.checkpoint.ema import Ema
from training.checkpoint.export import export, main
from training.checkpoint.facts import read_facts, write_facts
from training.checkpoint.save_plan import SavePlan
from training.distributed.layout import Layout
from training.distributed.parallel import Parallel, parallelize
from training.output import output_held

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

ALONE = Parallel(Layout(), 0, torch.device("cpu"))
FACTS = {"seed": 3, "recipe": {"name": "tiny", "learning_rate": 1e-2, "betas": [0.9, 0.999]}, "manifest": "abc"}
MORE = {"step": 2, "loss": 0.5}


def new_state(parallel: Parallel = ALONE, model: ContentVTransformer | None = None) -> State:
    model = model or small_model()
    parallelize(model, parallel, torch.float32)
    return State(model, Ema(model, 0.9), adam(model))


def blank_state(parallel: Parallel = ALONE) -> State:
    """A state whose weights no training has, so that a load that loads nothing is seen."""
    model = small_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return new_state(parallel, model)


def advance(parallel: Parallel, state: State, step: int) -> None:
    train_step(parallel, state.model, step)
    parallel.clip_grad_norm(state.model.parameters(), 1.0)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.ema.update()


def gathered(state: State) -> dict[str, torch.Tensor]:
    return {f"{part}.{name}": t for part, named in state.tensors().items() for name, t in whole(named).items()}


def is_same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def trained_state(steps: int, parallel: Parallel = ALONE) -> State:
    state = new_state(parallel)
    for step in range(steps):
        advance(parallel, state, step)
    return state


def refused(call: Any, *arguments: Any) -> str:
    try:
        call(*arguments)
    except (NotWritten, CheckpointError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


@contextmanager
def files_of_at_most(size: int):
    """What a full disk is like: writing beyond fails. Python ignores the signal, and the call raises EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def before_ranks(folder: Path) -> None:
    """A checkpoint of one process after two steps, for four ranks to go on from."""
    state = trained_state(2)
    checkpoints = Checkpoints(folder / "one", ALONE)
    checkpoints.save(2, state, 0.5, FACTS)
    checkpoints.finish()
    torch.save(gathered(state), folder / "one.pt")
    (folder / "source" / "vae").mkdir(parents=True)
    (folder / "source" / "transformer").mkdir()
    (folder / "source" / "vae" / "config.json").write_text("{}")


def in_rank(parallels: Mapping[str, Parallel], folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"process": os.getpid()}
    stored = torch.load(folder / "one.pt", weights_only=True)
    both = parallels["sp2 hsdp"]
    state = blank_state(both)
    step = Checkpoints(folder / "one", both).load(folder / "one" / "step-00000002", state, FACTS)
    found["one to four"] = step == 2 and is_same(gathered(state), stored)
    advance(both, state, 2)
    found["third step"] = gathered(state)

    hsdp = parallels["hsdp"]
    sent = noted_objects()
    state = trained_state(2, hsdp)
    checkpoints = Checkpoints(folder / "four", hsdp)
    found["none yet"] = checkpoints.last()
    checkpoints.save(2, state, 0.25, FACTS)
    advance(hsdp, state, 2)  # while it is written
    checkpoints.finish()
    found["last"] = str(checkpoints.last())
    again = blank_state(hsdp)
    checkpoints.load(folder / "four" / "step-00000002", again, FACTS)
    after_load = gathered(again)
    advance(hsdp, again, 2)
    found["bitwise"] = is_same(gathered(again), gathered(state))
    found["exchanged"] = list(sent)
    other = blank_state(parallels["fsdp"])
    checkpoints.load(folder / "four" / "step-00000002", other, FACTS)
    found["two to four shards"] = is_same(gathered(other), after_load)

    found["whose"] = refused(checkpoints.load, folder / "four" / "step-00000002", again, FACTS | {"manifest": "other"})
    rmtree = shutil.rmtree
    shutil.rmtree = lambda *args, **options: (time.sleep(0.3), rmtree(*args, **options))
    with files_of_at_most(20_000 if hsdp.rank == 2 else resource.RLIM_INFINITY):
        checkpoints.save(3, state, 0.2, FACTS)
        found["full disk"] = refused(checkpoints.finish)
    shutil.rmtree = rmtree
    found["removed before any rank goes on"] = not (folder / "four" / ".step-00000003").exists()
    found["after a full disk"] = str(checkpoints.last())
    found["beside it"] = sorted(path.name for path in (folder / "four").iterdir())
    dist.barrier(hsdp.cpu_group)  # no rank begins to save again while another still looks
    checkpoints.save(3, state, 0.2, FACTS)
    checkpoints.finish()
    found["with space again"] = str(checkpoints.last())

    with output_held(folder / "held", hsdp):
        found["a second run"] = refused_output(folder / "held", hsdp)
    with output_held(folder / "held", hsdp) as hold:
        hold.check()

    export(state.model, state.ema, folder / "export", folder / "source", hsdp, FACTS | MORE)
    found["ema"] = whole(state.ema.state)
    found["export again"] = refused_export(state, folder, hsdp)
    return found


def noted_objects() -> list[str]:
    """The exchanges of pickled objects between ranks, from now on: each by its name."""
    sent: list[str] = []

    def noted(name: str, exchange: Any) -> Any:
        def told(*args: Any, **options: Any) -> Any:
            sent.append(name)
            return exchange(*args, **options)

        return told

    for name in ("gather_object", "scatter_object_list", "broadcast_object_list", "all_gather_object"):
        setattr(dist, name, noted(name, getattr(dist, name)))
    return sent


def refused_output(output: Path, parallel: Parallel) -> str:
    try:
        with output_held(output, parallel):
            return ""
    except InUse as error:
        return str(error)


def refused_export(state: State, folder: Path, parallel: Parallel) -> str:
    try:
        export(state.model, state.ema, folder / "export", None, parallel, FACTS | MORE)
    except (FileExistsError, CheckpointError) as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return four_ranks(tmp_path_factory)[0]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    return [found["checkpoints"] for found in four_ranks(tmp_path_factory)[1]]


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Checkpoints, State, Path]:
    checkpoints, state = Checkpoints(tmp_path, ALONE), trained_state(1)
    checkpoints.save(1, state, 0.5, FACTS)
    checkpoints.finish()
    return checkpoints, state, tmp_path / "step-00000001"


def test_four_ranks_go_on_from_one_process(ranks) -> None:
    assert all(found["one to four"] for found in ranks)
    found = ranks[0]["third step"]
    for part in ("model", "ema"):
        own = {name.removeprefix(f"{part}."): t for name, t in found.items() if name.startswith(f"{part}.")}
        assert_near(own, one_process()[part], 1e-5)


def test_one_process_goes_on_from_four_ranks(ranks, folder: Path) -> None:
    state = blank_state()
    assert Checkpoints(folder / "elsewhere", ALONE).load(folder / "four" / "step-00000002", state, FACTS) == 2
    advance(ALONE, state, 2)
    assert_near(whole(dict(state.model.named_parameters())), one_process()["model"], 1e-5)
    assert_near(state.ema.state, one_process()["ema"], 1e-5)


def test_a_resume_of_four_ranks_is_bitwise_the_run_that_went_on(ranks) -> None:
    assert all(found["bitwise"] and found["two to four shards"] for found in ranks)


def test_a_resume_of_one_process_is_bitwise_the_run_that_went_on(tmp_path: Path) -> None:
    checkpoints, state = Checkpoints(tmp_path, ALONE), trained_state(1)
    state.model.recompute = Recompute("full")
    checkpoints.save(1, state, None, FACTS)
    advance(ALONE, state, 1)  # while it is written
    checkpoints.finish()
    again = blank_state()
    assert checkpoints.load(tmp_path / "step-00000001", again, FACTS) == 1
    assert not is_same(gathered(again), gathered(state))
    advance(ALONE, again, 1)
    assert is_same(gathered(again), gathered(state))


def test_what_is_saved_is_the_state_of_the_call(tmp_path: Path) -> None:
    checkpoints, state = Checkpoints(tmp_path, ALONE), trained_state(1)
    before = gathered(state)
    checkpoints.save(1, state, 0.5, FACTS)
    for named in state.tensors().values():
        for tensor in named.values():
            tensor.zero_()
    checkpoints.finish()
    again = blank_state()
    checkpoints.load(tmp_path / "step-00000001", again, FACTS)
    assert is_same(gathered(again), before)


def test_the_settings_of_the_optimizer_stay_those_of_the_run(saved) -> None:
    checkpoints, _, path = saved
    state = blank_state()
    state.optimizer.param_groups[0]["lr"] = 0.125
    checkpoints.load(path, state, FACTS)
    assert state.optimizer.param_groups[0]["lr"] == 0.125
    assert state.optimizer.param_groups[0]["fused"]


def test_all_ranks_name_the_same_last_checkpoint(ranks, folder: Path) -> None:
    assert [found["none yet"] for found in ranks] == [None] * 4
    assert {found["last"] for found in ranks} == {str((2, folder / "four" / "step-00000002"))}


def test_one_rank_with_a_full_disk_fails_the_checkpoint_on_all(ranks, folder: Path) -> None:
    good = folder / "four" / "step-00000002"
    for found in ranks:
        for part in ("NotWritten", "step 3", str(good), "rank 2", "File too large"):
            assert part in found["full disk"]
        assert found["after a full disk"] == str((2, good))
        assert found["beside it"] == ["step-00000002"]
        assert found["with space again"] == str((3, folder / "four" / "step-00000003"))
    state = blank_state()
    Checkpoints(folder / "four", ALONE).load(good, state, FACTS)
    assert all(value.any() for name, value in gathered(state).items() if name.startswith("model."))


def test_ranks_exchange_no_pickles_while_they_save_and_load(ranks) -> None:
    assert [found["exchanged"] for found in ranks] == [[]] * 4


def test_all_ranks_of_a_second_run_in_one_output_are_refused(ranks) -> None:
    assert all(f"held' is in use: process {ranks[0]['process']} on " in found["a second run"] for found in ranks)


def test_no_rank_goes_on_from_a_failed_save_before_its_folder_is_gone(ranks) -> None:
    assert all(found["removed before any rank goes on"] for found in ranks)


def test_one_process_with_a_full_disk_keeps_its_last_checkpoint(saved) -> None:
    checkpoints, state, path = saved
    before = gathered(state)
    advance(ALONE, state, 1)
    with files_of_at_most(20_000):
        checkpoints.save(2, state, 0.4, FACTS)
        with pytest.raises(NotWritten, match=r"step 2 .*step-00000001: .*File too large"):
            checkpoints.finish()
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    again = blank_state()
    checkpoints.load(path, again, FACTS)
    assert is_same(gathered(again), before)


def test_a_failed_write_is_raised_by_the_next_save(saved) -> None:
    checkpoints, state, path = saved
    (path.parent / ".step-00000002").write_text("a file where the folder belongs")
    checkpoints.save(2, state, 0.4, FACTS)
    with pytest.raises(NotWritten, match="step 2"):
        checkpoints.save(3, state, 0.3, FACTS)
    assert checkpoints.last() == (1, path)


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    checkpoints, state = Checkpoints(tmp_path, ALONE, keep_last=2, keep_best=2), trained_state(1)
    left = []
    for step, loss in enumerate([0.5, 0.1, float("nan"), 0.4, None, 0.2, 0.3], start=1):
        checkpoints.save(step, state, loss, FACTS)
        checkpoints.finish()
        left.append(sorted(int(path.name[-2:]) for path in tmp_path.iterdir()))
    assert left == [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [1, 2, 4, 5], [2, 4, 5, 6], [2, 4, 6, 7]]


def test_no_checkpoint_is_removed_before_the_next_is_whole(saved) -> None:
    checkpoints, state, path = Checkpoints(saved[2].parent, ALONE, keep_last=1, keep_best=0), saved[1], saved[2]
    with files_of_at_most(20_000):
        checkpoints.save(2, state, 0.4, FACTS)
        with pytest.raises(NotWritten):
            checkpoints.finish()
    assert checkpoints.last() == (1, path)
    checkpoints.save(2, state, 0.4, FACTS)
    checkpoints.finish()
    assert [file.name for file in path.parent.iterdir()] == ["step-00000002"]


def test_a_step_that_is_saved_again_is_replaced(saved) -> None:
    checkpoints, state, path = saved
    advance(ALONE, state, 1)
    checkpoints.save(1, state, 0.25, FACTS)
    checkpoints.finish()
    assert json.loads((path / "facts.json").read_text())["loss"] == 0.25
    again = blank_state()
    checkpoints.load(path, again, FACTS)
    assert is_same(gathered(again), gathered(state))


def test_what_a_crash_left_is_removed_and_never_loaded(saved) -> None:
    _, _, path = saved
    for left in (".step-00000009", ".step-00000001-old"):
        (path.parent / left).mkdir()
        (path.parent / left / "__0_0.distcp").write_bytes(b"half")
    (path.parent / "step-00000008").mkdir()  # not ours: no facts
    shutil.copytree(path, path.with_name("step-00000004-keep"))  # a user's own copy
    shutil.copytree(path, path.with_name(".step-00000004-mine"))
    assert last_checkpoint(path.parent) == (1, path)
    assert Checkpoints(path.parent, ALONE).last() == (1, path)
    kept = [".step-00000004-mine", "step-00000001", "step-00000004-keep", "step-00000008"]
    assert sorted(file.name for file in path.parent.iterdir()) == kept


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"manifest": "def"}, r"manifest is 'abc' there and 'def' here"),
        ({"seed": 4}, "seed is 3 there and 4 here"),
        ({"recipe": FACTS["recipe"] | {"learning_rate": 1.0}}, r"recipe\.learning_rate is 0\.01 there and 1\.0 here"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_before_loading(saved, change: dict[str, Any], said: str) -> None:
    checkpoints, _, path = saved
    state = blank_state()
    with pytest.raises(CheckpointError, match=said):
        checkpoints.load(path, state, FACTS | change)
    assert not any(parameter.any() for parameter in state.model.parameters())


def test_all_ranks_refuse_a_checkpoint_of_other_data(ranks) -> None:
    assert all("manifest is 'abc' there and 'other' here" in found["whose"] for found in ranks)


def test_a_checkpoint_of_another_size_is_refused_before_loading(saved) -> None:
    checkpoints, _, path = saved
    larger = new_state(model=fill(ContentVTransformer(**{**SIZE, "num_layers": 3})))
    before = gathered(larger)
    with pytest.raises(CheckpointError, match=r"model\.num_layers is 2 there and 3 here"):
        checkpoints.load(path, larger, FACTS)
    assert is_same(gathered(larger), before)


def test_tensors_of_another_model_are_refused_whatever_the_facts_say(saved) -> None:
    checkpoints, _, path = saved
    larger = new_state(model=fill(ContentVTransformer(**{**SIZE, "num_layers": 3})))
    facts = json.loads((path / "facts.json").read_text())
    facts["model"]["num_layers"] = 3
    del facts["crc32"]
    (path / "facts.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match=r"missing: model\.transformer_blocks\.1\.attn"):
        checkpoints.load(path, larger, FACTS)


def test_flipped_bits_are_refused_or_harmless(saved) -> None:
    checkpoints, state, path = saved
    want, random = gathered(state), Random(7)
    refusals = 0
    for name in ["__0_0.distcp"] * 40 + [".metadata"] * 10 + ["facts.json"] * 10:
        file = path / name
        before = file.read_bytes()
        content = bytearray(before)
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        file.write_bytes(content)
        again = blank_state()
        try:
            checkpoints.load(path, again, FACTS)
        except CheckpointError:
            refusals += 1
        else:
            assert name == "__0_0.distcp" and is_same(gathered(again), want), name  # a bit of padding between records
        file.write_bytes(before)
    assert refusals > 30


def test_a_flipped_bit_of_the_weights_is_refused_by_its_file_and_place(saved) -> None:
    checkpoints, state, path = saved
    content = bytearray((path / "__0_0.distcp").read_bytes())
    place = content.find(state.model.proj_out.bias.detach().numpy().tobytes())
    content[place + 5] ^= 4
    (path / "__0_0.distcp").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is damaged: .*__0_0\.distcp, bytes \d+ to \d+"):
        checkpoints.load(path, blank_state(), FACTS)


def test_the_index_is_made_once_while_tensors_keep_their_sizes(tmp_path: Path, monkeypatch) -> None:
    made = []
    index = SavePlan.index
    monkeypatch.setattr(SavePlan, "index", lambda *args: (made.append(1), index(*args))[1])
    checkpoints, state = Checkpoints(tmp_path, ALONE), trained_state(1)
    for step in (1, 2, 3):
        checkpoints.save(step, state, 0.5, FACTS)
    checkpoints.finish()
    assert made == [1]
    again = blank_state()
    checkpoints.load(tmp_path / "step-00000003", again, FACTS)
    assert is_same(gathered(again), gathered(state))


def test_a_damaged_checkpoint_is_refused(saved) -> None:
    checkpoints, _, path = saved
    (data,) = path.glob("*.distcp")
    os.truncate(data, data.stat().st_size // 2)
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoints.load(path, blank_state(), FACTS)
    os.truncate(path / ".metadata", 100)
    with pytest.raises(CheckpointError, match="index of checkpoint"):
        checkpoints.load(path, blank_state(), FACTS)
    with pytest.raises(CheckpointError, match="no checkpoint of a run"):
        checkpoints.load(path.parent, blank_state(), FACTS)


class Malice:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_an_index_that_would_run_code_is_refused(saved) -> None:
    checkpoints, _, path = saved
    index = pickle.dumps(Malice(path / "ran"))
    (path / ".metadata").write_bytes(index)
    write_facts(path, read_facts(path) | {"index_crc32": zlib.crc32(index)})
    with pytest.raises(CheckpointError, match="no description of a tensor"):
        checkpoints.load(path, blank_state(), FACTS)
    assert not (path / "ran").exists()


def test_an_export_of_four_ranks_is_the_averaged_weights(ranks, folder: Path) -> None:
    exported = load_transformer(folder / "export").state_dict()
    assert is_same(exported, ranks[0]["ema"])
    assert os.path.samefile(folder / "export" / "vae" / "config.json", folder / "source" / "vae" / "config.json")
    assert read_facts(folder / "export") == FACTS | MORE
    assert all("export" in found["export again"] for found in ranks)


def test_any_checkpoint_is_exported_without_a_run(ranks, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [
        sys.executable,
        "-m",
        "training.checkpoint.export",
        "four/step-00000003",
        "exported",
        "--source",
        "source",
    ]
    root = Path(__file__).parents[3]
    subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(root)}, check=True)
    exported = load_transformer(folder / "exported").state_dict()
    assert is_same(exported, ranks[0]["ema"])
    assert (folder / "exported" / "vae" / "config.json").is_file()
    assert read_facts(folder / "exported")["step"] == 3


def test_an_export_overwrites_nothing_and_leaves_nothing_half(saved, tmp_path: Path, monkeypatch) -> None:
    _, _, path = saved
    (tmp_path / "there").mkdir()
    monkeypatch.setattr(sys, "argv", ["checkpoints", str(path), str(tmp_path / "there")])
    with pytest.raises(FileExistsError):
        main()
    monkeypatch.setattr(sys, "argv", ["checkpoints", str(path), str(tmp_path / "new" / "one"), "--dtype", "bfloat16"])
    with files_of_at_most(20_000), pytest.raises(Exception, match="File too large"):
        main()
    assert not list((tmp_path / "new").iterdir())
    main()
    assert load_transformer(tmp_path / "new" / "one").proj_out.weight.dtype == torch.bfloat16


def test_one_process_exports_with_its_own_average(tmp_path: Path) -> None:
    state = trained_state(1)
    export(state.model, state.ema, tmp_path / "out", None, ALONE, FACTS | MORE)
    exported = load_transformer(tmp_path / "out").state_dict()
    assert is_same(exported, state.ema.state)
    assert not is_same(exported, whole(dict(state.model.named_parameters())))
