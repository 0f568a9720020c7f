"""The steps: what they change and what they don't, what they end with, and that they are the same each time."""

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cachegraph import Comparison, Graph, compare
from cachegraph.channels.fusers.files.load import load_fuser, load_translator
from cachegraph.engine.model.load import LoadedModel
from cachegraph.errors import ConfigError, FuserError
from cachegraph.training.callbacks import NullCallback
from cachegraph.training.checkpoint import CheckpointState
from cachegraph.training.data.examples import Replies
from cachegraph.training.data.packed_replies import reply_logprobs
from cachegraph.training.dev_eval import DevScores, derange
from cachegraph.training.loop import TrainingLoop, deferred_interrupts, schedule
from cachegraph.training.loss import losses
from cachegraph.training.note_rows import note_rows
from cachegraph.training.prefill import prefill
from cachegraph.training.spec import LossSpec
from cachegraph.training.train import OpenedTraining, train

from .conftest import THINGS, Task, read_log, story_rows, write_task

KINDS = ("graft", "fuse")


@pytest.fixture(params=KINDS)
def task(request: pytest.FixtureRequest, tmp_path: Path, tiny_folders: dict[str, Path]) -> Task:
    return write_task(tmp_path / "task", tiny_folders, request.param)


def loop(found: OpenedTraining, folder: Path, callback: Any = None) -> TrainingLoop:
    from accelerate import Accelerator

    receiver = found.pair.receiver.engine.model
    return TrainingLoop(
        found.spec,
        found.learner,
        receiver,
        found.train,
        found.dev,
        folder,
        CheckpointState(""),
        callback or NullCallback(),
        Accelerator(),
    )


def run(task: Task, **settings: Any) -> list[dict[str, Any]]:
    train(task.spec(**settings), folder=task.folder, restart=True)
    return task.log()


def of(kind: str, log: list[dict[str, Any]], name: str) -> list[float]:
    return [each[name] for each in log if each["kind"] == kind]


def weights(model: LoadedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def test_the_loss_falls_and_the_two_models_stay_bit_for_bit(task: Task) -> None:
    settings = {"data__limit": 8, "optim__steps": 30, "optim__texts": 3, "fuser__ridge": None}
    if task.spec().fuser.kind == "fuse":
        del settings["fuser__ridge"]
    with task.open_training(**settings) as found:
        models = [end.engine.model for end in (found.pair.receiver, found.pair.sharer)]
        before = [weights(model) for model in models]
        learnt = {name: tensor.clone() for name, tensor in found.learner.module.named_parameters()}
        going = loop(found, task.folder / "run")
        going.start()
        going.finish()
        for model, old in zip(models, before, strict=True):
            assert all(torch.equal(tensor, old[name]) for name, tensor in model.network.state_dict().items())
            assert all(parameter.grad is None for parameter in model.network.parameters())
        changed = [name for name, tensor in found.learner.module.named_parameters() if not tensor.equal(learnt[name])]
        assert len(changed) > 0.7 * len(learnt)  # a gate that closes leaves what is behind it
    loss = of("step", read_log(task.folder / "run"), "loss")
    assert len(loss) == 30
    assert sum(loss[-5:]) < 0.8 * sum(loss[:5])


def test_the_same_seed_gives_the_same_log_and_another_one_another(task: Task) -> None:
    first = run(task)
    assert first == run(task)
    other = run(task, seed=1)
    assert of("step", first, "loss") != of("step", other, "loss")
    assert [each["step"] for each in first] == [each["step"] for each in other] == [0, 1, 2, 3, 3, 4, 5, 6, 6]


def outputs(found: OpenedTraining) -> list[list[Tensor]]:
    """The caches, corrected or grafted, that the receiver sees of one question about different texts."""
    examples = found.train
    with torch.no_grad():
        trees, _ = found.learner.trees([examples[0]] * 3, [examples[0], examples[4], examples[6]])
    return [[x for segment in tree.segments for layer in segment.layers for x in layer] for tree in trees]


def test_without_the_sharers_cache_nothing_that_it_read_reaches_the_receiver(
    tmp_path: Path, tiny_folders: dict[str, Path]
) -> None:
    """All texts are of one length here, so what differs could only be their words."""
    rows = [
        {"context": f"It was {letter} and {letter}.", "question": "What?", "choices": ["a", "b"], "answer": 0}
        for letter in "acegikmoqs"
    ]
    for kind in KINDS:
        task = write_task(tmp_path / kind, tiny_folders, kind, rows=rows)
        for control in ("zero", "none"):
            with task.open_training(control=control) as found:
                _open_up(found)
                first, *others = outputs(found)
                # On some CPUs a matrix product rounds a row by where it stands: by a last bit, no word's worth.
                apart = [max(float((a - b).abs().max()) for a, b in zip(first, other, strict=True)) for other in others]
                assert [each < 1e-6 for each in apart] == [control == "zero"] * 2
                assert control == "zero" or min(apart) > 1e-3


def _open_up(found: OpenedTraining) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in found.learner.module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).abs() * 0.1)
    found.learner.module.eval()


def test_under_the_control_identical_the_receivers_model_is_its_own_sharer(task: Task) -> None:
    with task.open_training(control="identical") as found:
        assert found.pair.receiver.engine.model is found.pair.sharer.engine.model
        assert found.pair.sharer.agent == "reader"
    made = train(task.spec(control="identical"), folder=task.folder)
    assert made.card.sharer == made.card.receiver
    assert "control 'identical': not for use" in str(made.card.trained_on)


class Scripted:
    """Judgements in the place of real ones: by step, (accuracy, log-probability)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *judgements: tuple[float, float]):
        self._left = list(judgements)
        monkeypatch.setattr("cachegraph.training.loop.evaluate_dev", self)

    def __call__(self, *_: Any) -> DevScores:
        accuracy, logprob = self._left.pop(0)
        return DevScores(400, accuracy, 0.5, logprob, -9.0)


def test_it_stops_when_nothing_gets_better(graft_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    Scripted(monkeypatch, (0.5, -2.0), (0.9, -1.0), (0.5, -3.0), (0.5, -3.0), (0.99, 0.0))
    made = train(graft_task.spec(optim__steps=40, judge__every=2, judge__patience=2), folder=graft_task.folder)
    assert made.steps == 6
    assert made.metrics["accuracy"] == 0.9
    assert made.card.metrics["step"] == 2


def test_the_best_fuser_is_kept_whatever_came_later(graft_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights are those of the step that was judged best, not the last one's."""
    made = []
    for steps in (3, 6):
        Scripted(monkeypatch, (0.5, -2.0), (0.9, -1.0), (0.6, -0.5))
        settings = {"optim__steps": steps, "optim__warmup": 40}  # a warm-up that is the same for both
        made.append(train(graft_task.spec(**settings, output=f"of{steps}"), folder=graft_task.folder))
    short, long = (load_translator(each.folder).network.state_dict() for each in made)
    assert all(torch.equal(short[name], long[name]) for name in short)
    assert made[1].card.metrics["step"] == 3
    assert made[1].steps == 6


def test_the_last_fuser_is_kept_if_the_recipe_says_so(graft_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for keep in ("last", "best"):
        Scripted(monkeypatch, (0.5, -2.0), (0.9, -1.0), (0.6, -3.0))
        spec = graft_task.spec(optim__steps=6, judge__keep=keep, output=f"the-{keep}")
        made.append(train(spec, folder=graft_task.folder))
    assert [each.card.metrics["step"] for each in made] == [6, 3]
    assert [each.metrics["accuracy"] for each in made] == [0.6, 0.9]
    last, best = (load_translator(each.folder).network.state_dict() for each in made)
    assert any(not torch.equal(last[name], best[name]) for name in last)


def test_patience_is_refused_where_the_last_fuser_is_kept(graft_task: Task) -> None:
    with pytest.raises(ConfigError, match="leave it out with `keep: last`"):
        graft_task.spec(judge__keep="last", judge__patience=3)


def test_among_scores_that_noise_explains_the_likelier_answers_win() -> None:
    state = CheckpointState("")
    assert state.improves(0.5, 0.05, -1.0)
    state.best_score, state.best_logprob, state.top_score = 0.5, -1.0, 0.5
    assert state.improves(0.48, 0.05, -0.9)
    assert not state.improves(0.52, 0.05, -1.1)
    assert not state.improves(0.44, 0.05, -0.1)
    assert state.improves(0.60, 0.05, -3.0)


def test_a_gradient_that_is_no_number_ends_it_with_a_remedy(graft_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        found = losses(*_)
        return type(found)(found.total * float("nan"), found.next_token, None, None)

    with graft_task.open_training() as found:
        going = loop(found, graft_task.folder / "run")
        going.step()
        before = {name: tensor.clone() for name, tensor in going.module.state_dict().items()}
        monkeypatch.setattr("cachegraph.training.loop.losses", broken)
        with pytest.raises(FuserError, match=r"gradient of step 2 is nan; lower the learning rate and --restart"):
            going.step()
        assert all(torch.equal(tensor, before[name]) for name, tensor in going.module.state_dict().items())


@pytest.mark.parametrize(("kind", "prefix"), [("graft", ""), ("joint", "graft.")])
def test_a_translators_first_layer_moves_slower_by_as_much_as_it_has_more_inputs(
    kind: str, prefix: str, tmp_path: Path, tiny_folders: dict[str, Path]
) -> None:
    task = write_task(tmp_path / "task", tiny_folders, kind)
    with task.open_training(optim__warmup=0, optim__learning_rate=1e-3) as found:
        going = loop(found, task.folder / "run")
        going.start()
        before = {name: x.detach().clone() for name, x in going.module.named_parameters()}
        going.step()
        moved = {name: float((x.detach() - before[name]).abs().max()) for name, x in going.module.named_parameters()}
    rank, inputs = before[f"{prefix}down.weight"].shape
    # Adam's first step is as large as the rate, whatever the gradient.
    assert moved[f"{prefix}up.weight"] == pytest.approx(1e-3, rel=0.01)
    assert moved[f"{prefix}down.weight"] == pytest.approx(1e-3 * rank / inputs, rel=0.01)


def test_accumulated_steps_are_the_mean_of_their_gradients(graft_task: Task) -> None:
    """Two parts of a step weigh as one step of both would."""
    with graft_task.open_training(optim__accumulate=2, optim__texts=1, loss__choices=0) as found:
        going = loop(found, graft_task.folder / "run")
        both = [*going.step_examples(0), *going.step_examples(1)]
        going._losses(both).total.backward()  # type: ignore[no-untyped-call]
        wanted = [p.grad.clone() for p in going.module.parameters() if p.grad is not None]
        going.optimizer.zero_grad()
        for part in range(2):
            (going._losses(going.step_examples(part)).total / 2).backward()  # type: ignore[no-untyped-call]
        got = [p.grad for p in going.module.parameters() if p.grad is not None]
        for one, other in zip(got, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_branch_of_a_tree_scores_as_it_does_alone(task: Task) -> None:
    with task.open_training() as found:
        _open_up(found)
        examples, model = list(found.train[:6]), found.pair.receiver.engine.model
        with torch.no_grad():
            trees, places = found.learner.trees(examples)
            flat = [each for tree in reply_logprobs(model, trees) for each in tree]
            for example, place in zip(examples, places, strict=True):
                (tree,), _ = found.learner.trees([example])
                ((alone,),) = reply_logprobs(model, [tree])
                torch.testing.assert_close(flat[place], alone, rtol=1e-4, atol=1e-4)
                (tree,), _ = found.learner.trees([example], right_only=True)
                ((right,),) = reply_logprobs(model, [tree])
                torch.testing.assert_close(right[0], alone[example.replies.right], rtol=1e-4, atol=1e-4)


def test_losses_are_means_over_the_rows_as_their_names_say() -> None:
    replies = [Replies(((1, 2), (3,)), 0), Replies(((4,),), 0)]
    own = [torch.tensor([-2.0, -1.0]), torch.tensor([-3.0])]
    found = losses(
        LossSpec(choices=2, mismatched=1, margin=4), replies, own, [torch.tensor([-5.0]), torch.tensor([0.0])]
    )
    right = -torch.tensor([-2.0, -1.0]).log_softmax(0)[0]
    assert float(found.next_token) == pytest.approx((2 / 2 + 3) / 2)
    assert found.choices is not None
    assert float(found.choices) == pytest.approx(float(right))
    assert found.mismatched is not None
    assert float(found.mismatched) == pytest.approx((1 + 7) / 2)
    assert float(found.total) == pytest.approx(2.0 + 2 * float(right) + 4.0)


def test_a_temperature_gives_the_row_that_is_wrong_by_far_less_of_the_gradient() -> None:
    replies = [Replies(((1, 2), (3,)), 0), Replies(((4,), (5, 6)), 0)]
    shares = []
    for temperature in (1.0, 6.0):
        near, far = torch.tensor([-3.0, -3.5], requires_grad=True), torch.tensor([-30.0, -6.0], requires_grad=True)
        found = losses(LossSpec(next_token=0, choices=1, temperature=temperature), replies, [near, far], None)
        terms = [-(each.detach() / temperature).log_softmax(0)[0] for each in (near, far)]
        assert found.choices is not None
        assert float(found.choices.detach()) == pytest.approx(float(sum(terms)) / 2)
        found.total.backward()  # type: ignore[no-untyped-call]
        assert near.grad is not None
        assert far.grad is not None
        shares.append(float(near.grad.norm() / far.grad.norm()))
    assert shares[1] > shares[0] * 1.2


def test_a_contrast_with_another_texts_cache_is_part_of_the_loss(task: Task) -> None:
    log = run(task, loss__mismatched=0.5, loss__margin=200)
    for step in (each for each in log if each["kind"] == "step"):
        assert step["mismatched"] > 0
        whole = step["next_token"] + step["choices"] + 0.5 * step["mismatched"]
        assert step["loss"] == pytest.approx(whole, rel=1e-5)


def test_the_learning_rate_warms_up_and_falls_to_its_last_part() -> None:
    learning_rate_scales = [schedule(step, 100, 10, 0.1) for step in range(100)]
    assert learning_rate_scales[:11] == sorted(learning_rate_scales[:11])
    assert learning_rate_scales[10] == 1.0
    assert learning_rate_scales[10:] == sorted(learning_rate_scales[10:], reverse=True)
    assert learning_rate_scales[-1] == pytest.approx(0.1, abs=1e-2)


@pytest.mark.parametrize("groups", [["a", "b", "a", "c"], ["a", "b"], ["a"]])
def test_a_partner_read_another_text_where_there_is_one(groups: list[str]) -> None:
    found = derange(groups)
    assert all(groups[i] != groups[j] for i, j in enumerate(found)) == (len(set(groups)) > 1)
    assert found == derange(groups)


def test_an_interruption_waits_for_what_must_be_whole() -> None:
    seen = []

    def interrupted() -> None:
        with deferred_interrupts():
            signal.raise_signal(signal.SIGINT)
            seen.append("whole")
        seen.append("and no more")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert seen == ["whole"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_what_is_made_says_where_it_comes_from(task: Task) -> None:
    made = train(task.spec(licence="CC0", seed=3), folder=task.folder)
    again = load_translator(made.folder) if task.spec().fuser.kind == "graft" else load_fuser(made.folder)
    card = again.card
    assert (card.licence, card.metrics["seed"], card.receiver.name, card.sharer.name) == ("CC0", 3, "small", "other")
    assert str(card.trained_on).startswith("rows.jsonl: 18 rows, 6 steps, ")
    assert card.receiver.identity
    assert card.sharer.identity
    assert card.metrics["dev_answer_logprob"] == pytest.approx(made.metrics["answer_logprob"], abs=1e-4)
    tokens = of("step", [json.loads(line) for line in (task.run / "log.jsonl").read_text().splitlines()], "seconds")
    assert made.seconds == pytest.approx(sum(tokens))


def test_dev_rows_share_no_text_with_those_that_are_learnt(task: Task) -> None:
    with task.open_training() as found:
        mine, theirs = ({found.learner.group(each) for each in rows} for rows in (found.train, found.dev))
        assert mine
        assert theirs
        assert not mine & theirs
    rows = [json.loads(line) for line in (task.folder / "rows.jsonl").read_text().splitlines()]
    (task.folder / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:6]))
    with task.open_training(data__dev="dev.jsonl") as found:
        assert len(found.dev) == 6
        assert len(found.train) == len(rows) - 6


def test_replies_without_choices_are_learnt_token_by_token(tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    rows = [{"context": f"Day {n}.", "question": "What?", "response": THINGS[n % 6]} for n in range(20)]
    task = write_task(tmp_path, tiny_folders, "graft", rows=rows, loss={"next_token": 1})
    graph: str = (tmp_path / "graph.yaml").read_text()
    (tmp_path / "graph.yaml").write_text(graph[: graph.index("evaluate:")])
    log = run(task)
    assert all("accuracy" not in each for each in log)
    assert all("choices" not in each for each in log)
    assert of("judgement", log, "answer_logprob")
    told: Mapping[str, float] = log[0]
    assert told["rows"] == 5


def test_the_card_keeps_the_rows_that_were_learnt_and_none_that_judged(task: Task) -> None:
    made = train(task.spec(), folder=task.folder)
    with task.open_training() as found:
        learnt = [row.inputs for row in found.rows]
    assert made.card.trained_rows is not None
    assert made.card.trained_rows.rows == len(learnt) == 18
    assert made.card.trained_rows.look_up(learnt) == (18, 18)
    rows = [json.loads(line) for line in (task.folder / "rows.jsonl").read_text().splitlines()]
    inputs = [{"context": row["context"], "question": row["question"]} for row in rows]
    judged = [each for each in inputs if each not in learnt]
    assert len(judged) == 6
    same_stories = task.spec().fuser.kind == "fuse"  # whose sharer reads the question too: a row is a text of its own
    assert made.card.trained_rows.look_up(judged).seen == (6 if same_stories else 0)


def test_rows_can_be_noted_on_the_card_of_an_earlier_training(task: Task) -> None:
    made = train(task.spec(), folder=task.folder)
    card = made.folder / "card.json"
    known = json.loads(card.read_text())
    card.write_text(json.dumps(known | {"trained_rows": None}))
    rows = note_rows(made.folder, task.recipe)
    assert rows == made.card.trained_rows
    assert json.loads(card.read_text()) == known
    assert [path.name for path in sorted(made.folder.iterdir())] == ["card.json", "fuser.safetensors"]


def test_a_comparison_on_rows_of_the_training_warns(graft_task: Task) -> None:
    train(graft_task.spec(), folder=graft_task.folder)
    rows = [json.loads(line) for line in (graft_task.folder / "rows.jsonl").read_text().splitlines()]
    with Graph.from_yaml(graft_task.folder / "graph.yaml", allow_paths=True) as graph:
        known = compare(graph, rows, variants=["cache"])
        new = compare(graph, [{**row, "context": f"Nobody saw {n} of them."} for n, row in enumerate(rows)],
                      variants=["cache"])  # fmt: skip
    (said,) = (each for each in known.warnings if "training data" in each)
    assert said.startswith("18 of 24 evaluated rows, or the texts they are about, were in the training data")
    assert not any("training data" in each for each in new.warnings)
    plain = json.loads(known.to_json())
    assert plain["warnings"] == known.warnings == known.summary()["warnings"]
    del plain["warnings"]
    assert Comparison.from_json(json.dumps(plain)).warnings == []


def test_a_training_starts_from_another_translators_weights(graft_task: Task) -> None:
    train(graft_task.spec(output="first"), folder=graft_task.folder)
    first = load_translator(graft_task.folder / "first").network.state_dict()
    with graft_task.open_training(fuser__start="./first") as found:
        loop(found, graft_task.folder / "run").start()
        for name, tensor in found.learner.module.state_dict().items():
            assert torch.equal(tensor, first[name])
    (graft_task.folder / "others.jsonl").write_text(
        "".join(json.dumps({**row, "context": f"Not {row['context']}"}) + "\n" for row in story_rows(8))
    )
    made = train(
        graft_task.spec(fuser__start="./first", data__source="others.jsonl", optim__steps=1), folder=graft_task.folder
    )
    assert "started from weights trained on rows.jsonl" in str(made.card.trained_on)
    assert made.card.trained_rows is not None
    known = [json.loads(line) for line in (graft_task.folder / "rows.jsonl").read_text().splitlines()]
    assert made.card.trained_rows.look_up([{"context": row["context"]} for row in known]) == (18, 24)


def test_a_start_that_reads_more_layers_is_fitted_to_those_that_are_left(graft_task: Task) -> None:
    train(graft_task.spec(output="first"), folder=graft_task.folder)
    trained = load_translator(graft_task.folder / "first")
    exact = {"fuser__ridge": {"tokens": 10_000, "penalty": 1e-6}}
    with graft_task.open_training(fuser__start="./first", fuser__layers=[0, 2], **exact) as found:
        learner, network = found.learner, found.learner.module
        learner.start(found.train, lambda *_: None)
        for name, tensor in network.state_dict().items():
            if not name.startswith(("down.", "mean", "deviation")):
                assert torch.equal(tensor, trained.network.state_dict()[name])
        sharer = found.pair.sharer.engine.model
        expected, fitted = [], []
        for text in {example.text: None for example in found.train}:
            (kv,) = prefill(sharer, [text.ids])
            whole = sharer.rotation.unrotated(kv.select(torch.tensor(text.private))).layers
            expected.append(trained.network(trained.read(whole)))
            fitted.append(network(learner.features([text])[0]))
        error, spread = torch.cat(fitted) - torch.cat(expected), torch.cat(expected).var(0)
        assert error.square().mean() < 0.05 * spread.mean()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"fuser__rank": 5}, r"start from './first': its sizes are .*'rank': 6.*give the recipe the same ones"),
        ({"fuser__layers": [0, 2]}, r"it does not read the sharer's layers \[2\]; leave them out"),
        ({"control": "identical"}, "the fuser was made for the sharer 'other'"),
    ],
)
def test_a_start_of_another_shape_or_pair_is_refused(graft_task: Task, settings: dict[str, Any], said: str) -> None:
    train(graft_task.spec(output="first", optim__steps=1, fuser__layers=[0, 1]), folder=graft_task.folder)
    settings = {"fuser__layers": [0, 1], **settings}
    with pytest.raises(ConfigError, match=said), graft_task.open_training(fuser__start="./first", **settings):
        pass
