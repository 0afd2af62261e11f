"""What users of microsoft/deep-language-networks bring along: templates, prompts, results, models and settings."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from typer.main import get_command

from cli_shell import Shell, mail_csv
from dln.cli.config import parse_config, training_options
from dln.cli.flags import recipe_names
from dln.cli.main import app
from dln.cli.sources import load_config, parse_setting, recipe_file
from dln.data.paper import PAPER_TASKS, tasks_found
from dln.errors import InputError
from dln.infer.hidden import EditProposal
from dln.infer.prompts import RewriteProposal
from dln.integrations.original import original_prompts, read_result_data, result_data, write_result_data
from dln.lm.connections import read_connections
from dln.lm.load import load_lm
from dln.nn import ChoiceLayer, LayerInput, Sequential, Template, load_template, save_network
from dln.nn.original import is_original
from dln.train.options import resolve_options
from dln.train.run import read_events

FILES = Path(__file__).resolve().parents[2] / "shared" / "original"
NAMES = (
    *("analysis_backward", "analysis_forward", "analysis_forward_y", "classify_forward", "classify_residual"),
    *("q_action_prompt", "q_action_prompt_seq", "suffix_backward_h_np_y", "suffix_forward", "suffix_forward_tbs"),
    *("suffix_forward_tbs_y", "suffix_forward_y", "thoughts_backward", "thoughts_forward", "thoughts_forward_y"),
)
TEXTS = ("", "one line", "two\nlines ", " {{ prompt }} {% if %}", "ends with a blank line\n\n")


@pytest.fixture(scope="module")
def original() -> Path:
    if not FILES.is_dir():
        pytest.skip(f"the files of the original project are not at {FILES}")
    return FILES


def versions(file: Path) -> dict[str, dict[str, Any]]:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def engine(text: str, **values: object) -> str:
    """The original's engine: `dln.template.DLNTemplate.render`."""
    return jinja2.Template(text).render(**values).lstrip().rstrip()


def infos(pattern: tuple[bool, ...]) -> list[dict[str, Any]]:
    return [
        {"input": f"in {i}\n", "output": f" out {i}", "target": f"{{{{ {i} }}}}", "loss": 0.0 if right else 1.0}
        for i, right in enumerate(pattern)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_template_renders_as_the_original_renders_it(original: Path, name: str):
    file = original / "templates" / f"{name}.yaml"
    assert is_original(versions(file))
    readable = 0
    for version, entry in versions(file).items():
        try:
            engine(entry["template"], backward_infos=[])
        except jinja2.TemplateSyntaxError:
            with pytest.raises(InputError, match="does not parse"):
                load_template(f"{file}@{version}")
            continue
        readable += 1
        loaded = load_template(f"{file}:{version}")  # as the original writes it
        assert loaded == load_template(f"{file}@{version.removeprefix('v')}")
        assert loaded.stop == tuple(stop.replace("\\n", "\n") for stop in entry.get("stop_tokens", ()))
        assert loaded.messages == tuple(entry.get("message_alternatives", ()))
        assert Template.from_json(json.loads(json.dumps(loaded.to_json())), "saved") == loaded
        if loaded.kind == "backward":
            for pattern, prompt in product(((), (True,), (False,), (True, False, False, True)), TEXTS):
                shown = infos(pattern)
                right = [e for e in shown if e["loss"] == 0.0]
                wrong = [e for e in shown if e["loss"]]
                ours = {"examples": shown, "successes": right, "failures": wrong, "count": 3}
                wanted = engine(entry["template"], prompt=prompt, message="Be brief.", backward_infos=shown)
                assert loaded.render(prompt=prompt, message="Be brief.", **ours) == wanted
        elif loaded.kind == "hidden":
            for x, h in product(TEXTS, TEXTS):
                theirs = {"input": x, "h": h, "y": "yes", "prompt": "first", "next_prompt": "second", "message": "Go."}
                ours = {"x": "not shown", "h": x, "output": h, "target": "not shown", "y": "yes", "prompt": "first"}
                assert loaded.render(next_prompt="second", message="Go.", **ours) == engine(entry["template"], **theirs)
        else:
            for x, h, prompt in product(TEXTS, TEXTS, TEXTS):
                theirs = {"input": x, "output": h} if loaded.residual else {"input": h}
                assert loaded.render(x=x, h=h, prompt=prompt) == engine(entry["template"], prompt=prompt, **theirs)
    assert readable


def test_the_kinds_and_the_latest_versions(original: Path):
    kinds: dict[str, set[str]] = {}
    for name in NAMES:
        loaded = load_template(original / "templates" / f"{name}.yaml")
        kinds.setdefault(loaded.kind, set()).add(name)
    assert kinds["backward"] == {"q_action_prompt", "q_action_prompt_seq"}
    assert kinds["hidden"] == {name for name in NAMES if name.endswith(("_y", "backward"))}
    assert len(kinds["forward"]) == 6
    assert load_template(original / "templates/q_action_prompt.yaml").name == "q_action_prompt:v3.6"
    assert {path.stem for path in (original / "templates").iterdir()} == set(NAMES)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classify_forward", "Is it true?\n\nThe sky is blue.\n\nAnswer:"),
        ("suffix_forward_tbs", "The sky is blue.\n\nIs it true? Let's think step by step."),
        ("thoughts_forward", "Is it true?\n\nThe sky is blue.\n\nThoughts:"),
        ("classify_residual", "network's input\nYour thoughts were:\nThe sky is blue."),
    ],
)
def test_expected_texts(original: Path, name: str, text: str):
    loaded = load_template(original / f"templates/{name}.yaml")
    assert loaded.render(x="network's input", h="The sky is blue.", prompt="Is it true?") == text


def test_they_work_in_layers_and_proposals(original: Path):
    from dln.lm.table import TableLM

    lm = TableLM(lambda context: {"\nyes": 0.5, "\nno": 0.5}, name="table")
    layer = ChoiceLayer(lm, f"{original}/templates/classify_forward.yaml:3.0", "Is it true?", ["yes", "no"])
    assert layer.contexts([LayerInput("a", "a")]) == ["Is it true?\n\na\n\nAnswer:"]
    assert layer.template.target_prefix == "\n"
    RewriteProposal(template=f"{original}/templates/q_action_prompt.yaml@3.5")
    EditProposal(template=f"{original}/templates/suffix_backward_h_np_y.yaml")


def test_what_is_wrong_with_such_a_file_is_said(tmp_path: Path):
    def file(text: str) -> Path:
        (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
        return tmp_path / "mine.yaml"

    one = file("v1.0: {template: '{{ input }}'}\nv1.2: {template: '{{ input }}!'}\n")
    assert load_template(one).render(h="x", prompt="") == "x!"
    with pytest.raises(InputError, match=re.escape("v1.0, v1.2")):
        load_template(f"{one}@2.0")
    with pytest.raises(InputError, match="source_x"):
        load_template(file("v1: {template: '{{ input }} {{ y }} {{ source_x }}'}\n"))
    with pytest.raises(InputError, match="no text"):
        load_template(file("v1: {stop_tokens: []}\n"))
    with pytest.raises(InputError, match="only template files of the original project"):
        load_template(f"{file('name: mine')}@1")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, tmp_path, capsys)


def instructions(run: Path) -> list[str]:
    network = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))["network"]
    return [layer["prompt"]["instruction"] for layer in network["layers"]]


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_a_whole_configuration(name: str):
    settings = yaml.safe_load(recipe_file(name).read_text(encoding="utf-8"))
    config = parse_config(settings, name)
    options = training_options(config)
    assert options.preset == "paper"
    assert config.task.name == name.partition("/")[2].rpartition("-")[0]
    assert config.network.layers == (1 if name.endswith("-dln1") else 2)
    assert recipe_file(name).read_text(encoding="utf-8").startswith("# DLN-")
    for text in config.network.templates:
        load_template(text, "forward")


QUICK = ("paper/navigate-e2e", "paper/subj-dln1", "phi2/gsm8k-dln1")


@pytest.mark.data
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in recipe_names()]
)
def test_every_recipe_can_be_estimated(cli: Shell, paper_data: Path, name: str):
    if config_task(name) not in tasks_found(paper_data):
        pytest.skip(f"the data of {config_task(name)} is not at {paper_data}")
    own_model = "lm:" in recipe_file(name).read_text(encoding="utf-8")
    words = ["train", "--recipe", name, "--data", paper_data, "--dry-run", "--json", *([] if own_model else LM)]
    done = cli(*words)
    assert done.code == 0, done.err
    (estimate,) = done.records
    assert estimate["phases"]["total"]["calls"] > 0
    assert "recipe: DLN-" in done.err


LM = ["--lm", "fake/1"]


def config_task(recipe: str) -> str:
    return yaml.safe_load(recipe_file(recipe).read_text(encoding="utf-8"))["task"]["name"]


def test_the_recipes_of_the_paper_cover_its_tasks_and_variants():
    names = set(recipe_names())
    nine = set(PAPER_TASKS) - {"gsm8k"}
    assert {f"paper/{task}-dln1" for task in nine} <= names
    assert {f"paper/{task}-e2e" for task in PAPER_TASKS} <= names
    three = ("navigate", "date_understanding", "logical_deduction_seven_objects")
    assert {f"paper/{task}-{kind}" for task in three for kind in ("fixed", "finetuned")} <= names


def test_the_tuned_settings_of_dln_1_are_those_of_the_search(original: Path):
    searched = json.loads((original / "one-layer-dln-hp-search-result.json").read_text(encoding="utf-8"))
    for task, found in searched.items():
        recipe = yaml.safe_load(recipe_file(f"paper/{task}-dln1").read_text(encoding="utf-8"))["options"]
        tuned = found["hyperparam"]
        tolerance = int(tuned["tolerance"])
        # 0 reloads the best prompt at every validation without gain, as 1 does
        assert recipe["tolerance"] == (None if tolerance < 0 else max(1, tolerance))
        assert recipe["memory"] == int(tuned["use_memory"])
        assert recipe["inference"]["held_out_half"] == (tuned["held_out_prompt_ranking"] == "True")


def test_a_recipe_stands_between_the_project_file_and_the_flags(cli: Shell):
    (cli.folder / "dln.yaml").write_text("options: {steps: 7, batch_size: 3, seed: 5}\n", encoding="utf-8")
    (cli.folder / "more.yaml").write_text("options: {batch_size: 4}\n", encoding="utf-8")
    config = load_config({"network": {"layers": 2}}, cli.folder / "more.yaml", recipe="paper/navigate-dln1")
    options = training_options(config)
    assert (options.steps, options.batch_size, options.seed, config.network.layers) == (20, 4, 5, 2)
    done = cli("train", "--recipe", "paper/navigat-e2e")
    assert done.code == 2
    assert "paper/navigate-e2e" in done.err


SMALL = ["--steps", 0, "--no-test", "--dev-size", 4, *LM]


def test_prompts_of_results_begin_a_network(cli: Shell):
    mail_csv(cli.folder / "mail.csv")
    steps = [
        {"step": i, "layers": [f"think {i}", f"answer {i}"], "metrics": {"dev_acc": score}, "candidates": [[], []]}
        for i, score in enumerate((0.5, None, 0.7, 0.7))
    ]
    one = {"dataset": "mail", "best_weights": "Sort it.\n"}
    (cli.folder / "two.json").write_text(json.dumps({"mail": {"training": steps, "examples": []}, "b": one}))
    (cli.folder / "one.json").write_text(json.dumps({"other": one}))
    base = ["train", "--csv", "mail.csv", "--hidden", "think", "--preset", "paper", *SMALL]

    def begun(name: str, layers: int) -> list[str]:
        run = f"runs/{len(list(cli.folder.glob('runs/*')))}"
        done = cli(*base, "--layers", layers, "--prompts-from", name, "--run-dir", run)
        assert done.code == 0, done.err
        return instructions(cli.folder / run)

    assert begun("two.json", 2) == ["think 2", "answer 2"]
    assert begun("two.json#b", 1) == ["Sort it."]
    # the prompt of one layer begins the last of several, as in the recipes with a fixed or fine-tuned last layer
    assert begun("one.json", 3) == [*["Decompose the problem to make it simpler:"] * 2, "Sort it."]
    assert begun("runs/1", 2)[1] == "Sort it."
    done = cli(*base, "--layers", 2, "--prompts-from", "two.json#c", "--run-dir", "runs/x")
    assert done.code == 2
    assert "mail, b" in done.err


def test_the_demo_results_are_read_and_written_again(original: Path):
    text = (original / "demo_result_data.json").read_text(encoding="utf-8")
    results = read_result_data(original / "demo_result_data.json")
    assert set(results) == {"hyperbaton", "subj", "navigate", "navigate-best"}
    assert json.loads(write_result_data(results)) == json.loads(text)
    prompts = original_prompts(json.loads(text), "navigate-best", "demo")
    assert prompts is not None
    step = max(results["navigate-best"].training, key=lambda one: one.metrics.get("dev_acc") or 0.0)
    assert [prompt.instruction for prompt in prompts] == [layer.strip() for layer in step.layers]


def test_a_damaged_result_is_one_error(tmp_path: Path):
    (tmp_path / "bad.json").write_text('{"a": {"training": [{"step": 0}], "examples": []}}', encoding="utf-8")
    with pytest.raises(InputError, match="training"):
        read_result_data(tmp_path / "bad.json")
    with pytest.raises(InputError, match="damaged"):
        original_prompts(json.loads((tmp_path / "bad.json").read_text()), "a", "bad.json")


@pytest.mark.parametrize("layers", [1, 2])
def test_a_run_becomes_a_result_file_that_the_viewer_can_read(cli: Shell, layers: int):
    mail_csv(cli.folder / "mail.csv")
    words = ["train", "--csv", "mail.csv", "--lm", "fake/1", "--layers", layers, "--hidden", "think", "--steps", 2]
    options = ["batch_size=4", "val_every=1", "inference.num_prompts=2"]
    sets = [word for option in options for word in ("--set", option)]
    run = cli.trained(*words, *sets, "--dev-size", 8, "--test-size", 8, run_dir="runs/a")
    (result,) = result_data(read_events(run / "events.jsonl")).values()
    assert [step.step for step in result.training] == [0, 1, 2]
    assert all(len(step.layers) == layers and len(step.candidates) == 2 for step in result.training)
    first, second = result.training[1:]
    assert set(first.metrics) == {"elbo", "acc", "run_elbo", "run_acc", "dev_acc"}
    assert first.metrics["run_acc"] == first.metrics["acc"]
    assert second.metrics["run_acc"] == pytest.approx(0.2 * second.metrics["acc"] + 0.8 * first.metrics["acc"])
    # what the viewer reads: a trace at every step that is shown, hidden texts for networks of two layers
    steps = {row.step for example in result.examples for row in example.trace}
    assert steps == {0, 1, 2}
    hidden = [row.hiddens for example in result.examples for row in example.trace if row.step == 2]
    assert all(len(texts) == layers - 1 for texts in hidden)
    written = write_result_data({"mail": result})
    (cli.folder / "result_data.json").write_text(written, encoding="utf-8")
    assert read_result_data(cli.folder / "result_data.json") == {"mail": result}


def test_models_of_a_registry(original: Path, cli: Shell, monkeypatch: pytest.MonkeyPatch):
    known = read_connections(original / "connections.yaml")
    assert list(known) == ["gpt-35-bwd", "phi-2-fwd"]
    variables = {
        "GPT_API_KEY": "sk-a-very-secret-key",
        "GPT_API_BASE": "https://here.openai.azure.com",
        "GPT_API_TYPE": "azure",
        "GPT_API_VERSION": "2024-10-21",
        "PHI2_API_BASE": "http://127.0.0.1:9/v1",
    }
    assert known["gpt-35-bwd"].settings(variables) == {
        "spec": "azure/gpt-35-turbo-instruct:completion",
        "base_url": ["https://here.openai.azure.com"],
        "options": {"api_version": "2024-10-21"},
        "api_key_env": "GPT_API_KEY",
    }
    found = known["phi-2-fwd"].settings(variables)
    assert found == {"spec": "vllm/microsoft/phi-2", "base_url": ["http://127.0.0.1:9/v1"]}
    assert known["gpt-35-bwd"].load(variables).name == "azure/gpt-35-turbo-instruct:completion"
    assert "sk-a-very" not in repr(known)
    with pytest.raises(InputError, match="GPT_API_TYPE"):
        known["gpt-35-bwd"].settings({})
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    mail_csv(cli.folder / "mail.csv")
    words = ["--connections", original / "connections.yaml", "--lm", "phi-2-fwd", "--prompt-lm", "gpt-35-bwd"]
    done = cli("train", "--csv", "mail.csv", *words, "--dry-run", "--json", "--steps", 1)
    assert done.code == 0, done.err
    config = load_config(
        {"lm": {"connections": str(original / "connections.yaml"), "spec": "phi-2-fwd", "prompt_lm": "gpt-35-bwd"}},
        settings=["inference.prompt_tokens=99"],
    )
    assert (config.lm.spec, config.network.hidden_tokens) == ("vllm/microsoft/phi-2", 256)
    assert config.options["inference"] == {"forward_temperature": 0.0, "prompt_temperature": 0.7, "prompt_tokens": 99}
    assert config.lm.prompt_lm is not None
    assert config.lm.prompt_lm.api_key_env == "GPT_API_KEY"
    assert "secret" not in json.dumps(config.model_dump(mode="json"))


def test_a_name_of_a_registry_is_a_model_of_every_command(cli: Shell):
    """The server does not answer: the name was understood, and is not an unknown model."""
    layer = ChoiceLayer(load_lm("fake/1"), "classify", "Sort it.", ["order", "return"])
    save_network(Sequential(layer), cli.folder / "net.json")
    row = {"name": "mine", "model": "org/m", "base_url": "http://127.0.0.1:9/v1"}
    (cli.folder / "models.yaml").write_text(yaml.safe_dump([row]), encoding="utf-8")
    words = ["predict", "net.json", "two boxes", "--lm", "mine", "--lm-option", "max_retries=0"]
    assert cli(*words).code == 2
    done = cli(*words, "--connections", "models.yaml")
    assert (done.code, "vllm/org/m" in done.err or "127.0.0.1:9" in done.err) == (3, True), done.err


def test_a_key_in_a_registry_is_never_shown_or_written(tmp_path: Path):
    file = tmp_path / "models.yaml"
    row = {"name": "mine", "model": "org/m", "api_key": "sk-in-the-file", "base_url": "http://127.0.0.1:9/v1"}
    file.write_text(yaml.safe_dump([row]), encoding="utf-8")
    config = load_config({"lm": {"connections": str(file), "spec": "mine"}})
    assert config.lm.api_key is not None
    assert config.lm.api_key.get_secret_value() == "sk-in-the-file"
    assert "sk-in" not in config.model_dump_json() + repr(config) + repr(read_connections(file))
    for bad in ("- {name: a, api_key: sk-in-the-file, wrong: 1}", "- {api_key: sk-in-the-file}", "a: [sk-in-the-file"):
        file.write_text(bad, encoding="utf-8")
        with pytest.raises(InputError) as caught:
            read_connections(file)
        assert "sk-in" not in str(caught.value)


PAGE = Path(__file__).parents[1] / "docs" / "from-the-original.md"
FLAGS = """
seed out_dir data_dir max_train_size max_dev_size max_test_size val_freq do_first_eval do_zero_shot n_shots q_hidden
q_prompt p_hidden p_class p_residual balance_batch batch_size one_layer dataset use_h_argmax iters num_p_samples
num_h_samples tolerance cost_only rewrite_loss_only strip_options_for_hidden trust_factor fwd_temp bwd_temp use_memory
forward_use_classes init_p1 init_p2 held_out_prompt_ranking train_p1 train_p2 logp_penalty decay_logp_penalty
output_scoring_function hidden_scoring_function loss_function posterior_sharpening_include_prior
posterior_sharpening_correct_weighting posterior_sharpening_use_mi_regularization posterior_temp fwd_model_type
bwd_model_type fwd_max_tokens bwd_max_tokens p1_max_tokens p2_max_tokens num_p1_steps connections_config use_nce
burn_in_ratio result_data_path enable_wandb
"""
"""Of the original's training script."""


def rows(section: str) -> list[list[str]]:
    text = PAGE.read_text(encoding="utf-8").partition(f"## {section}\n")[2].partition("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return cells[2:]


def test_the_page_names_every_flag_of_the_original_and_options_that_exist():
    table = rows("Flags of vi_main.py")
    assert [first.strip("`") for first, *_ in table] == [f"--{name}" for name in FLAGS.split()]
    command = get_command(app).commands["train"]  # type: ignore[attr-defined]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for original_flag, here, remark in table:
        assert here or remark or original_flag == "--do_first_eval"
        for span in re.findall(r"`([^`]+)`", here):
            if span.startswith("--"):
                assert span.split()[0] in known, span
            else:
                resolve_options("paper", parse_setting(span))
        for span in re.findall(r"`(--[^` ]+)[^`]*`", remark):
            assert span in known, span


def test_the_page_names_recipes_templates_and_files_that_exist(original: Path):
    for _, here in rows("Scripts"):
        for span in re.findall(r"`(\w+/[\w-]+)`", here):
            assert any(re.fullmatch(span.replace("TASK", r"\w+"), name) for name in recipe_names()), span
    named = {span for first, _ in rows("Templates") for span in re.findall(r"`(\w+)`", first)}
    assert named == set(NAMES)
    assert {f"`{path.name}`" for path in original.glob("*.*") if path.stem not in ("README", "dataset_info")} <= {
        *(first.replace("result_data", "demo_result_data") for first, *_ in rows("Files")),
        *(first for first, *_ in rows("Files")),
    }
