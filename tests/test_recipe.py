from __future__ import annotations

import json
import math

import pytest

from physcli.errors import UsageError
from physcli.recipe import (
    EncoderRecipe,
    GeneratorRecipe,
    LaMo,
    Lora,
    Optimizer,
    ProjectorSettings,
    RecipeError,
    Repa,
    Sft,
    VaeRecipe,
    completed,
    dump_recipe,
    find_recipe,
    list_recipes,
    load_yaml,
    read_recipe,
    recipe_schema,
)


@pytest.fixture
def read(tmp_path):
    def write_and_read(text: str) -> dict:
        (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
        return load_yaml(tmp_path / "r.yaml")

    return write_and_read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("2E3", 2000.0),
        ("1.5e+2", 150.0),
        (".5", 0.5),
        ("3.", 3.0),
        ("-.inf", -math.inf),
        ("12", 12),
        ("-3", -3),
        ("007", 7),
        ("0x1F", 31),
        ("0o17", 15),
        ("1_000", "1_000"),
        ("16:9", "16:9"),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("Off", "Off"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("2024-01-02", "2024-01-02"),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        ("'1'", "1"),
        ("[1e-3, no]", [1e-3, "no"]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
    ],
)
def test_scalars(read, text, value):
    loaded = read(f"key: {text}\n")["key"]
    assert loaded == value
    assert type(loaded) is type(value)


def test_nan_and_anchors(read):
    assert math.isnan(read("key: .nan")["key"])
    assert read("a: &x {b: 1}\nc: *x") == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", r"r\.yaml:4: the key 'c' is there already, in line 3"),
        ("a: 1\n2: b\n", r"r\.yaml:2: the key 2 is not text"),
        ("a: 1\n[x]: b\n", r"r\.yaml:2: the key \['x'\] is not text"),
        ("a: [1, 2\nb: 3\n", r"r\.yaml:2: (did not find )?expected ',' or '\]'"),
        ("a: 1\n\tb: 2\n", r"r\.yaml:2: found (character '\\t'|a tab character)"),
        ("a: !!python/object:os.system x\n", r"r\.yaml:1: could not determine a constructor"),
        ("a: 1\n---\nb: 2\n", r"r\.yaml:2: "),
        ("- a\n- b\n", r"r\.yaml holds a list"),
        ("", r"r\.yaml holds nothing"),
        ("a: \x01\n", r"r\.yaml: unacceptable character"),
    ],
)
def test_errors_name_file_and_line(read, text, message):
    with pytest.raises(RecipeError, match=message):
        read(text)


def test_unreadable_files(tmp_path):
    with pytest.raises(RecipeError, match="No such recipe file"):
        load_yaml(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    with pytest.raises(RecipeError, match=r"latin\.yaml cannot be read"):
        load_yaml(tmp_path / "latin.yaml")


def test_finding(tmp_path):
    assert {"pretrain/cogvideox-tiny", "pretrain/videomae-tiny"} <= set(list_recipes())
    packaged = find_recipe("pretrain/cogvideox-tiny")
    assert packaged.is_file()
    assert find_recipe("pretrain/cogvideox-tiny.yaml") == packaged
    own = tmp_path / "own.yaml"
    own.write_text("a: 1")
    assert find_recipe(own) == own
    with pytest.raises(RecipeError, match="No such recipe file"):
        find_recipe(tmp_path / "other.yaml")
    with pytest.raises(UsageError, match="Did you mean 'pretrain/videomae-tiny'"):
        find_recipe("pretrain/videomea-tiny")


@pytest.mark.parametrize("name", sorted(list_recipes()))
def test_every_recipe_is_strict_yaml(name):
    assert load_yaml(find_recipe(name))


@pytest.mark.parametrize("name", sorted(list_recipes()))
def test_every_recipe_is_valid_and_goes_round(name, tmp_path):
    recipe = read_recipe(name)
    assert recipe.trains in ("vae", "encoder", "generator", "motion-field", "motion-projector", "rater")
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert read_recipe(tmp_path / "again.yaml") == recipe


VAE = """
trains: vae
model: cogvideox-tiny
train: {steps: 10, optimizer: {lr: 1e-4}}
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.yaml").write_text(VAE)
    return tmp_path / "own.yaml"


def test_defaults_are_filled_in(own):
    recipe = read_recipe(own)
    assert isinstance(recipe, VaeRecipe)
    assert recipe.train.optimizer.lr == 1e-4
    assert recipe.train.optimizer.betas == (0.9, 0.999)
    assert (recipe.data.source, recipe.init, recipe.train.mixed_precision) == ("simulated", "pretrained", "no")
    assert load_yaml(own) == {"trains": "vae", "model": "cogvideox-tiny", "train": load_yaml(own)["train"]}  # unchanged


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("train.steps=3", "train.steps", 3),
        ("train.optimizer.lr=1e-4", "train.optimizer.lr", 1e-4),
        ("train.optimizer.lr=2", "train.optimizer.lr", 2.0),
        ("train.schedule.warmup_steps=7", "train.schedule.warmup_steps", 7),  # a section the file does not have
        ("train.compile=true", "train.compile", True),
        ("train.mixed_precision=no", "train.mixed_precision", "no"),
        ("train.optimizer.betas=[0.8, 0.9]", "train.optimizer.betas", (0.8, 0.9)),
        ("train.trackers=[wandb, tensorboard]", "train.trackers", ("wandb", "tensorboard")),
        ("train.trackers=[]", "train.trackers", ()),
        ("objective.strides=[2]", "objective.strides", (2,)),
        ("data.limit=5", "data.limit", 5),
        ("data.limit=null", "data.limit", None),
        ("data.limit=", "data.limit", None),
        ("data.source=simulated:16", "data.source", "simulated:16"),
        ("data.source=/a/b=c=d", "data.source", "/a/b=c=d"),
        ("model='007'", "model", "007"),
        ("model=my model", "model", "my model"),
        ("architecture={}", "architecture", {}),
        (
            "architecture={family: wan, seed: 1, transformer: {x: [1, two]}, vae: {x: 1e-3}}",
            "architecture",
            {"family": "wan", "seed": 1, "transformer": {"x": [1, "two"]}, "vae": {"x": 1e-3}},
        ),
    ],
)
def test_overrides(own, tmp_path, override, place, value):
    recipe = read_recipe(own, [override])
    found = recipe
    for name in place.split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert read_recipe(tmp_path / "again.yaml") == recipe


def test_the_last_override_counts(own):
    assert read_recipe(own, ["train.steps=3", "train.batch_size=1", "train.steps=4"]).train.steps == 4


def test_an_override_may_change_what_is_trained(own):
    assert isinstance(read_recipe(own, ["trains=encoder"]), EncoderRecipe)
    assert isinstance(read_recipe(own, ["trains=generator", "vae=a/folder"]), GeneratorRecipe)


def explained(recipe, override, said, expected):
    """An override that cannot be is refused, saying this of it and of what would do."""
    with pytest.raises(UsageError) as error:
        read_recipe(recipe, [override])
    assert said in error.value.received
    assert expected in error.value.expected


@pytest.mark.parametrize(
    ("override", "said", "expected"),
    [
        ("train.steps", "'train.steps'", "key=value"),
        ("=3", "'=3'", "key=value"),
        ("train..steps=3", "'train..steps=3'", "key=value"),
        ("train.steps=[1", "'[1' is not YAML", "a number, a word or [a, list]"),
        ("model.name=x", "model is not a section", "the fields description, model"),
        ("train.steps.x=1", "steps is not a section", "train"),
        ("train.stepz=3", "unknown field train.stepz, did you mean steps?", "train.batch_size"),
        ("train.optimizer.learning_rate=1", "unknown field train.optimizer.learning_rate", "train.optimizer.lr,"),
        ("trian.steps=3", "unknown field trian, did you mean train?", "objective"),
        ("objective.windows=2", "unknown field objective.windows", "objective.strides"),
        ("vae=x", "unknown field vae", "the fields"),
        ("train=null", "train is None", "train.steps"),
        ("train.steps=0", "train.steps is 0 (input should be greater than 0)", "train.steps"),
        ("train.steps=2.5", "train.steps is 2.5", "train.steps"),
        ("train.steps=true", "train.steps is True", "train.steps"),
        ("train.steps='10'", "train.steps is '10'", "train.steps"),
        ("train.steps=ten", "train.steps is 'ten'", "train.steps"),
        ("train.steps=", "train.steps is None", "train.steps"),
        ("train.compile=yes", "train.compile is 'yes'", "train.compile"),
        ("train.compile=1", "train.compile is 1", "train.compile"),
        ("train.ema=1", "train.ema is 1", "train.ema"),
        ("train.optimizer.lr=.nan", "train.optimizer.lr is nan", "lr"),
        ("train.optimizer.lr=.inf", "train.optimizer.lr is inf", "lr"),
        ("train.optimizer.betas=[0.9]", "train.optimizer.betas.1 is missing", "betas"),
        ("train.optimizer.betas=[0.9, 1]", "train.optimizer.betas.1 is 1", "betas"),
        ("train.optimizer.name=sgd", "train.optimizer.name is 'sgd'", "name"),
        ("train.schedule.name=cosin", "train.schedule.name is 'cosin'", "name"),
        ("train.trackers=wandb", "train.trackers is 'wandb'", "trackers"),
        ("objective.strides=[]", "objective.strides is []", "strides"),
        ("objective.strides=[1, 0]", "objective.strides.1 is 0", "strides"),
        ("data.source=3", "data.source is 3", "data.source"),
        ("data.max_bad=1.1", "data.max_bad is 1.1", "data.max_bad"),
        ("architecture=tiny", "architecture is 'tiny'", "the fields"),
        ("trains=vea", "trains is 'vea'", "one of vae, encoder, generator"),
        ("trains=[vae]", "trains is ['vae']", "one of vae, encoder, generator"),
    ],
)
def test_wrong_overrides_are_explained(own, override, said, expected):
    explained(own, override, said, expected)


def test_several_problems_at_once(own):
    wrong = ["train.steps=x", "train.batch_size=0", "a=1", "b=2", "c=3"]
    with pytest.raises(UsageError, match=r"train\.steps is 'x'.*; train\.batch_size is 0.*; .* \(and 2 more\)"):
        read_recipe(own, wrong)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: m\ntrain: {steps: 1}\n", "trains is missing"),
        ("trains: vae\ntrain: {steps: 1}\n", "model is missing"),
        ("trains: vae\nmodel: m\ntrain: {}\n", "train.steps is missing"),
        ("trains: vae\nmodel: m\ntrain:\n", "train is None"),
        ("trains: generator\nmodel: m\nvae: 3\ntrain: {steps: 1}\n", "vae is 3"),
    ],
)
def test_wrong_files_are_explained(tmp_path, text, said):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError) as error:
        read_recipe(tmp_path / "r.yaml")
    assert f"r.yaml: {said}" in error.value.received
    with pytest.raises(RecipeError):  # the file's fault, whatever is on the command line
        read_recipe(tmp_path / "r.yaml", ["data.limit=3"])


def test_an_override_may_give_what_the_file_lacks(tmp_path):
    for text in ("trains: vae\nmodel: m\n", "trains: vae\nmodel: m\ntrain:\n"):
        (tmp_path / "r.yaml").write_text(text)
        assert read_recipe(tmp_path / "r.yaml", ["train.steps=3"]).train.steps == 3


@pytest.mark.parametrize(
    "text",
    [
        *("1e-4", "no", "yes", "16:9", "0o17", "0x1F", "2024-01-01", "true", "null", "~", "", ".5", "1_000", "+1"),
        *("007", "é😀", "a: b", "# x", "'q'", "-", "=", "<<", ".inf", "two\nlines", "x" * 300, " padded "),
    ],
)
def test_text_goes_round_as_text(own, tmp_path, text):
    recipe = read_recipe(own, ["trains=encoder"]).model_copy(
        update={"description": text, "architecture": {"word": text, "list": [text, 1]}}
    )
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert read_recipe(tmp_path / "again.yaml") == recipe


GENERATOR = """
trains: generator
model: cogvideox-tiny
train: {steps: 10}
method: {name: tsa, teacher: videomae-tiny, projector: {num_layers: 2}}
"""


@pytest.fixture
def aligned(tmp_path):
    (tmp_path / "aligned.yaml").write_text(GENERATOR)
    return tmp_path / "aligned.yaml"


def test_no_method_is_sft(own):
    recipe = read_recipe(own, ["trains=generator"])
    assert (recipe.method, recipe.lora, recipe.freeze) == (Sft(name="sft"), None, False)


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("method.weight=2", "method.weight", 2.0),
        ("method.taps=[3, 5]", "method.taps", (3, 5)),
        ("method.taps=null", "method.taps", None),
        ("method.temperature=1e-1", "method.temperature", 0.1),
        ("method.queries=salient", "method.queries", "salient"),
        ("method.view.layout=crops", "method.view.layout", "crops"),
        ("method.view.size=[64, 96]", "method.view.size", (64, 96)),
        ("method.view={drop_first: false}", "method.view.drop_first", False),
        ("method.projector.hidden_dim=64", "method.projector", ProjectorSettings(num_layers=2, hidden_dim=64)),
        ("method.projector.num_layers=0", "method.projector.num_layers", 0),
        ("method.teacher=a/folder", "method.teacher", "a/folder"),
        (
            "method={name: repa, teacher: x}",
            "method",
            Repa(name="repa", teacher="x"),
        ),
        ("method={name: lamo, lag: 1}", "method", LaMo(name="lamo", lag=1)),
        ("method={name: sft}", "method", Sft(name="sft")),
        ("lora={}", "lora", Lora()),
        ("lora.rank=8", "lora", Lora(rank=8)),
        ("lora.targets=[to_q, ff.net.2]", "lora.targets", ("to_q", "ff.net.2")),
        ("lora=null", "lora", None),
        ("freeze=true", "freeze", True),
        ("objective.guidance_scale=1.5", "objective.guidance_scale", 1.5),
        ("objective={noise: logit-normal, noise_mean: 0.5, noise_std: 2}", "objective.noise_std", 2.0),
        ("objective.noise_shift=3", "objective.noise_shift", 3.0),
    ],
)
def test_overrides_into_a_method(aligned, tmp_path, override, place, value):
    recipe = read_recipe(aligned, [override])
    found = recipe
    for name in place.split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert read_recipe(tmp_path / "again.yaml") == recipe


def test_another_method_by_name_keeps_what_it_shares(aligned):
    method = read_recipe(aligned, ["method.name=repa"]).method
    assert method == Repa(name="repa", teacher="videomae-tiny", projector=ProjectorSettings(num_layers=2))


METHODS = (
    "method.name: one of sft, repa, irepa, crepa, videorepa, tsa, moalign, lamo, layersync, motif, critic, "
    "videojam, nft, raft"
)


@pytest.mark.parametrize(
    ("override", "said", "expected"),
    [
        ("method.temprature=1", "unknown field method.temprature, did you mean temperature?", "method.queries"),
        ("method.margin=1", "unknown field method.margin", "method.own_frame"),  # VideoREPA's
        ("method.projector.hidden=3", "unknown field method.projector.hidden, did you mean hidden_dim?", "projector."),
        ("method.view.sise=[3, 4]", "unknown field method.view.sise, did you mean size?", "method.view.drop_first"),
        ("lora.rnk=3", "unknown field lora.rnk, did you mean rank?", "the fields lora.rank, lora.alpha"),
        ("method.name=tsaa", "method.name is 'tsaa'", METHODS),
        ("method.name=[tsa]", "method.name is ['tsa']", METHODS),
        ("method.name={tsa: 1}", "method.name is {'tsa': 1}", METHODS),
        ("method.name=1", "method.name is 1", METHODS),
        ("method.name=", "method.name is None", METHODS),
        ("method={teacher: x}", "method.name is missing", METHODS),
        ("method={}", "method.name is missing", METHODS),
        ("method=", "method is None", METHODS),
        ("method=tsa", "method is 'tsa'", METHODS),
        ("method.name=moalign", "method.motion_projector is missing", "method.motion_projector"),
        ("method.name=lamo", "unknown field method.teacher", "method.lag"),
        ("method={name: repa}", "method.teacher is missing", "method.teacher"),
        ("method.weight='1'", "method.weight is '1'", "method.weight"),
        ("method.weight=-1", "method.weight is -1", "method.weight"),
        ("method.taps=17", "method.taps is 17", "method.taps"),
        ("method.taps=[-1]", "method.taps.0 is -1", "method.taps"),
        ("method.taps=[]", "method.taps is []", "method.taps"),
        ("method.temperature=0", "method.temperature is 0", "method.temperature"),
        ("method.saliency_share=0", "method.saliency_share is 0", "method.saliency_share"),
        ("method.own_frame=1", "method.own_frame is 1", "method.own_frame"),
        ("method.view.layout=tiles", "method.view.layout is 'tiles'", "method.view.layout"),
        ("method.view.size=[3]", "method.view.size.1 is missing", "method.view.size"),
        ("method.view.size=64", "method.view.size is 64", "method.view.size"),
        ("method.projector=3", "method.projector is 3", "method.projector.num_layers"),
        ("method.projector.resample=conv4d", "method.projector.resample is 'conv4d'", "method.projector.resample"),
        ("lora=true", "lora is True", "lora.rank"),
        ("lora.rank=0", "lora.rank is 0", "lora.rank"),
        ("lora.dropout=1", "lora.dropout is 1", "lora.dropout"),
        ("lora.targets=[]", "lora.targets is []", "lora.targets"),
        ("lora.targets=to_q", "lora.targets is 'to_q'", "lora.targets"),
        ("freeze=1", "freeze is 1", "freeze"),
        ("objective.guidance_scale=-1", "objective.guidance_scale is -1", "objective.guidance_scale"),
        ("objective.samples=-1", "objective.samples is -1", "objective.samples"),
        ("objective.noise=cosine", "objective.noise is 'cosine'", "objective.noise"),
        ("objective={noise: logit-normal, noise_std: 0}", "objective.noise_std is 0", "objective.noise_mean"),
        (
            "objective.noise_mean=1",
            "objective: noise_mean and noise_std are for noise: logit-normal",
            "objective.noise",
        ),
        ("objective.noise_shift=0", "objective.noise_shift is 0", "objective.noise_shift"),
    ],
)
def test_wrong_overrides_into_a_method_are_explained(aligned, override, said, expected):
    explained(aligned, override, said, expected)


def test_a_wrong_method_in_a_file_is_explained(aligned):
    aligned.write_text(GENERATOR.replace("name: tsa", "name: tsaa"))
    with pytest.raises(RecipeError) as error:
        read_recipe(aligned)
    assert "aligned.yaml: method.name is 'tsaa'" in error.value.received
    assert error.value.expected == METHODS


@pytest.mark.parametrize(("hidden", "fine"), [(8, True), (48, True), (0, False), (12, False)])
def test_the_field_s_width_is_of_whole_groups(hidden, fine):
    if fine:
        assert read_recipe("lamo-field", [f"objective.hidden={hidden}"]).objective.hidden == hidden
    else:
        with pytest.raises(UsageError, match=f"objective.hidden is {hidden}"):
            read_recipe("lamo-field", [f"objective.hidden={hidden}"])


@pytest.fixture(scope="module")
def schema():
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(recipe_schema())
    return jsonschema.Draft202012Validator(recipe_schema())


@pytest.mark.parametrize("name", sorted(list_recipes()))
def test_the_schema_takes_every_recipe(schema, name):
    assert not list(schema.iter_errors(load_yaml(find_recipe(name))))
    assert not list(schema.iter_errors(json.loads(json.dumps(read_recipe(name).model_dump(mode="json")))))


@pytest.mark.parametrize(
    ("override", "fits"),
    [
        ("train.optimizer.lr=1e-4", True),
        ("train.optimizer.lr='1e-4'", False),
        ("train.optimizer.lr=-1", False),
        ("train.optimizer.betas=[0.9]", False),
        ("train.optimizer.betas=[0.9, x]", False),
        ("train.steps=true", False),
        ("train.compile=no", False),
        ("train.mixed_precision=no", True),
        ("train.stepz=3", False),
        ("steps=3", False),
        ("trains=vae", False),
        ("trains=nothing", False),
        ("method.taps=[]", False),
        ("method.name=lamo", False),
        ("method={name: lamo, lag: 1}", True),
        ("lora=", True),
        ("data=", False),
        ("data.source=hub:owner/name@main", True),
    ],
)
def test_the_schema_refuses_what_a_recipe_may_not_say(schema, tmp_path, override, fits):
    content = load_yaml(find_recipe("repa"))
    key, _, value = override.partition("=")
    (tmp_path / "value.yaml").write_text(f"value: {value}\n")
    *sections, last = key.split(".")
    place = content
    for section in sections:
        place = place.setdefault(section, {})
    place[last] = load_yaml(tmp_path / "value.yaml")["value"]
    assert schema.is_valid(content) == fits
    try:
        read_recipe("repa", [override])
        assert fits
    except UsageError:
        assert not fits


def test_the_schema_tells_editors_what_fields_are():
    sections = recipe_schema()["$defs"]
    assert sections["Data"]["properties"]["max_bad"]["description"].startswith("share of the clips")
    for method in ("Repa", "Tsa"):  # also what the methods share
        assert "counted from 0" in sections[method]["properties"]["taps"]["description"]
    assert sections["FuturePrediction"]["properties"]["contexts"]["description"] == "frames shown, one drawn a step"


@pytest.mark.parametrize("wrong", ["methd.weight=1", "method.weight=abc", "train.stepz=4"])
def test_a_wrong_override_is_named_alone_and_not_the_file(wrong):
    with pytest.raises(UsageError) as error:
        read_recipe("videorepa", ["data.source=simulated", wrong, "train.steps=3"])
    assert error.value.received.startswith(f"{wrong}: ")
    assert "videorepa.yaml" not in error.value.received


def test_fields_that_did_not_exist_count_as_their_defaults():
    """A section that was not there is none, however it is set today."""
    now = read_recipe("lamo", ["lora={}", "method.field={}", "objective.noise_shift=2"])
    then = now.model_dump(mode="json")
    for section, name in ((then, "lora"), (then["method"], "field"), (then["objective"], "noise_shift")):
        del section[name]
    then["train"]["optimizer"] = {"lr": 0.5}
    found = completed(then, now)
    assert (found["lora"], found["method"]["field"], found["objective"]["noise_shift"]) == (None, None, 1.0)
    assert found["train"]["optimizer"] == Optimizer(lr=0.5).model_dump(mode="json")
    assert completed(now.model_dump(mode="json"), now) == now.model_dump(mode="json")
    assert completed({}, now).keys() == now.model_dump().keys() - {"trains", "model", "train"}
