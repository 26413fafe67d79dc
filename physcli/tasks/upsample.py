"""`physcli prompts upsample`: short captions made into the detailed prompts that video models are trained on.

    OUT/prompts.jsonl    a row a caption, in order: caption, prompt ("" where there is none), upsampled, answer
    OUT/metrics.json, run.json

VideoREPA generates from captions that a language model has rewritten, and scores against the short ones. The
instructions here follow that procedure in words of our own. The writer is a text model of transformers, or any server
that speaks OpenAI's chat protocol; its address and key come from the environment and are never written anywhere.
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from physcli.data.prompts import Prompt, read_prompts
from physcli.errors import ModelError, UsageError
from physcli.hashing import content_hash
from physcli.models.device import pick_device, pick_dtype, quiet_libraries
from physcli.models.hub import explain_hub_errors
from physcli.progress import Reporter
from physcli.rows import Metric, make_row
from physcli.tasks.run_dir import RunDir, append_row, read_log, read_metrics, read_rows, with_defaults, write_jsonl

BASE_URL, API_KEY = "OPENAI_BASE_URL", "OPENAI_API_KEY"
INSTRUCTIONS = """You write prompts for a text-to-video model. You are given a short caption and answer with one \
paragraph of at most {words} words that describes the same video in detail.

Keep every object, action and outcome of the caption, in its order, and add no other event. Say what the objects \
look like (material, colour, size), how they move and touch, what the surroundings and the light are, and how the \
camera looks on. What happens must obey physics. Write plain English prose in the present tense: no headings, lists, \
quotation marks or remarks about the task."""
EXAMPLE = (
    "A ball rolls off a table.",
    "A smooth rubber ball, bright orange and the size of a fist, rolls slowly across a worn oak table in a sunlit "
    "kitchen. It reaches the edge, tips over it and falls, picking up speed until it strikes the tiled floor, where it "
    "bounces twice, each time lower, and comes to rest beside a table leg. Soft daylight falls from a window on the "
    "left; the camera stays still at the height of the table.",
)
_REFUSAL = re.compile(r"(i['’]?m sorry|i am sorry|sorry,|i can(no|['’])t|i am unable|i['’]?m unable|as an ai)", re.I)
_ATTEMPTS, _TIMEOUT_S = 4, 120
_PAUSE_S = 2.0  # doubled from one attempt to the next


@dataclass(frozen=True)
class UpsampleSettings:
    """`model`: a text model's hub id or folder, or a name the server knows; `server`: which of the two."""

    prompts: str
    model: str
    server: bool = False
    words: int = 120
    temperature: float = 0.0
    limit: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class UpsampleResult:
    """The rows of prompts.jsonl, and how many captions have no detailed prompt."""

    path: Path
    prompts: list[dict[str, Any]]
    rows: list[dict[str, Any]]

    @property
    def missing(self) -> int:
        return sum(not row["upsampled"] for row in self.prompts)


# A caption → the model's answer.
Writer = Callable[[str], str]


def upsample(
    settings: UpsampleSettings,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    reporter: Reporter | None = None,
) -> UpsampleResult:
    """Rewrite captions; those that were answered in an earlier attempt at the same run are kept.

    Raises:
        DataError: the list cannot be read, or holds no caption.
        UsageError: settings that cannot be, or no server's address.
        ModelError: the text model does not load, or the server refuses or does not answer.
    """
    reporter = reporter or Reporter()
    if settings.words < 1 or not 0 <= settings.temperature < 10:
        raise UsageError(
            f"--words {settings.words}, --temperature {settings.temperature}.", expected="at least 1, and 0 to 10"
        )
    source = Path(settings.prompts)
    listed = read_prompts(source)[: settings.limit]
    with RunDir(
        out,
        "prompts upsample",
        asdict(settings),
        complete=with_defaults(settings),
        overwrite=overwrite,
        reporter=reporter,
    ) as run:
        run.check_inputs({"prompts": content_hash(source)})
        if run.already_finished:
            reporter.note(f"{run.path} already holds these prompts; nothing is asked again.")
            return _read(run.path)
        log = run.path / "answers.part.jsonl"
        answers = _earlier(log, listed)
        if answers:
            reporter.note(f"{len(answers)} of {len(listed)} captions are answered already.")
        writer = None
        with reporter.bar("Rewriting", len(listed), "caption") as bar:
            for number, prompt in enumerate(listed):
                if number not in answers:
                    if writer is None:
                        writer = _server(settings) if settings.server else _local(settings, device, dtype)
                    answers[number] = writer(prompt.caption)
                    row = {"number": number, "caption": prompt.caption, "answer": answers[number]}
                    append_row(log, row)
                bar.advance()
        rows = [_row(prompt, answers[number]) for number, prompt in enumerate(listed)]
        write_jsonl(run.path / "prompts.jsonl", rows)
        log.unlink(missing_ok=True)
        missing = sum(not row["upsampled"] for row in rows)
        if missing:
            reporter.warn(
                f"{missing} of {len(rows)} captions were refused or answered with nothing: their prompt is empty, and "
                "`physcli sample` takes the caption instead."
            )
        common: dict[str, Any] = {"benchmark": "prompts", "task": "upsample", "subject": settings.model}
        values = {"upsampled": len(rows) - missing, "missing": missing}
        run.write_metrics(
            make_row(Metric(name, "count", None, interval="none"), value, n=len(rows), **common)
            for name, value in values.items()
        )
    return _read(run.path)


def clean(answer: str) -> str:
    """The prompt in an answer: on one line, without quotation marks around it; "" of a refusal."""
    text = " ".join(answer.split())
    for opening, closing in (('"', '"'), ("“", "”"), ("'", "'")):
        if len(text) > 1 and text.startswith(opening) and text.endswith(closing):
            text = text[1:-1].strip()
    return "" if _REFUSAL.match(text) else text


def _row(prompt: Prompt, answer: str) -> dict[str, Any]:
    text = clean(answer)
    kept = {key: value for key, value in prompt.columns.items() if key not in ("caption", "prompt")}
    return {"caption": prompt.caption, "prompt": text, "upsampled": bool(text), "answer": answer, **kept}


def _messages(caption: str, words: int) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": INSTRUCTIONS.format(words=words)},
        {"role": "user", "content": EXAMPLE[0]},
        {"role": "assistant", "content": EXAMPLE[1]},
        {"role": "user", "content": caption},
    ]


def _local(settings: UpsampleSettings, device: str, dtype: str) -> Writer:
    """A text model of transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = pick_device(device)
    with explain_hub_errors(settings.model), quiet_libraries():
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(settings.model)
            model: Any = AutoModelForCausalLM.from_pretrained(settings.model)
        except ValueError as error:
            raise ModelError(
                f"{settings.model} does not load as a text model: {error}.",
                expected="a causal language model in transformers' layout",
            ) from error
    if tokenizer.chat_template is None:
        raise ModelError(
            f"{settings.model} has no chat template.", expected="a model that was trained to follow instructions"
        )
    model = model.to(place, pick_dtype(dtype, place, 2 * sum(p.numel() for p in model.parameters()))).eval()
    sampled = {"do_sample": True, "temperature": settings.temperature} if settings.temperature else {"do_sample": False}

    @torch.no_grad()
    def write(caption: str) -> str:
        torch.manual_seed(settings.seed)  # an answer depends on its caption alone
        tokens = tokenizer.apply_chat_template(
            _messages(caption, settings.words), add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(place)
        # Some tokenizers add token types, which models that write do not take.
        inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        with quiet_libraries():
            made = model.generate(**inputs, max_new_tokens=3 * settings.words, **sampled)
        return str(tokenizer.decode(made[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True))

    return write


def _server(settings: UpsampleSettings) -> Writer:
    """A server with OpenAI's chat protocol."""
    base = os.environ.get(BASE_URL, "").rstrip("/")
    if not base:
        raise UsageError(
            f"--server without {BASE_URL} in the environment.",
            expected=f"the server's address there, such as http://localhost:8000/v1, and its key in {API_KEY} if it "
            "wants one",
        )
    key = os.environ.get(API_KEY, "")
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def write(caption: str) -> str:
        body = {
            "model": settings.model,
            "messages": _messages(caption, settings.words),
            "temperature": settings.temperature,
            "seed": settings.seed,
            "max_tokens": 3 * settings.words,
        }
        request = urllib.request.Request(
            f"{base}/chat/completions", data=json.dumps(body).encode(), headers=headers, method="POST"
        )
        return _ask(request)

    return write


def _ask(request: urllib.request.Request) -> str:
    """The answer's text; a server that is busy or away is asked again after a while."""
    problem = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_S * 2 ** (attempt - 1))
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
                message = json.loads(response.read())["choices"][0]["message"]
                return str(message.get("content") or "")
        except urllib.error.HTTPError as error:
            problem = f"HTTP {error.code} {error.reason}"
            if error.code not in (408, 409, 425, 429) and error.code < 500:
                break
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            problem = f"{type(error).__name__}: {getattr(error, 'reason', error)}"
    raise ModelError(
        f"The server does not answer: {problem}.",
        expected=f"OpenAI's chat protocol at {BASE_URL}, and a model and a key ({API_KEY}) that it knows",
        fix="mend that and run the same command again: what is answered is kept",
    )


def _earlier(log: Path, listed: list[Prompt]) -> dict[int, str]:
    """Answers of a run that was broken off."""
    captions = {number: prompt.caption for number, prompt in enumerate(listed)}
    return {row["number"]: row["answer"] for row in read_log(log) if captions.get(row["number"]) == row["caption"]}


def _read(path: Path) -> UpsampleResult:
    return UpsampleResult(path, read_rows(path / "prompts.jsonl"), read_metrics(path))
