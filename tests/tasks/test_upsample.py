"""Captions rewritten by a real server of the chat protocol, and by a real text model of transformers."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from physcli.data.prompts import read_prompts
from physcli.errors import ModelError, UsageError
from physcli.tasks import upsample as task
from physcli.tasks.upsample import UpsampleSettings, clean, upsample

CAPTIONS = ["A ball rolls, slowly.", "A glass breaks.", "Honey is poured."]
KEY = "secret-key-4711"


@pytest.fixture
def server(monkeypatch):
    """A server that answers with the caption in detail; `replies` overrides (status, text) by caption, in turn."""

    class Handler(BaseHTTPRequestHandler):
        asked: ClassVar[list] = []
        replies: ClassVar[dict] = {}

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            caption = body["messages"][-1]["content"]
            self.asked.append((self.path, self.headers.get("Authorization"), body))
            status, text = (self.replies.get(caption) or [(200, f'"In detail:\n{caption}"')]).pop(0)
            answer = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{running.server_port}/v1/")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(task, "_PAUSE_S", 0.01)
    yield Handler
    running.shutdown()
    running.server_close()


@pytest.fixture
def settings(tmp_path):
    path = tmp_path / "captions.csv"
    path.write_text("caption,kind\n" + "".join(f'"{caption}",k{i}\n' for i, caption in enumerate(CAPTIONS)))
    return UpsampleSettings(str(path), "writer", server=True)


def test_rows_keep_their_order_and_what_is_refused_is_missing(server, settings, tmp_path, listener):
    server.replies = {CAPTIONS[1]: [(200, "I'm sorry, but I can't help with that.")], CAPTIONS[2]: [(200, None)]}
    heard = listener()
    done = upsample(settings, out=tmp_path / "run", reporter=heard)
    assert [row["caption"] for row in done.prompts] == CAPTIONS
    assert [row["prompt"] for row in done.prompts] == [f"In detail: {CAPTIONS[0]}", "", ""]
    assert [row["upsampled"] for row in done.prompts] == [True, False, False]
    assert [row["kind"] for row in done.prompts] == ["k0", "k1", "k2"]
    assert "2 of 3 captions were refused or answered with nothing" in heard.warnings[0]
    assert {row["metric"]: row["value"] for row in done.rows} == {"upsampled": 1, "missing": 2}
    # What is missing is generated from the caption.
    texts = [(prompt.caption, prompt.text) for prompt in read_prompts(done.path / "prompts.jsonl")]
    assert texts == [(CAPTIONS[0], f"In detail: {CAPTIONS[0]}"), (CAPTIONS[1],) * 2, (CAPTIONS[2],) * 2]


def test_what_the_server_is_asked_and_that_its_key_is_kept_nowhere(server, settings, tmp_path):
    done = upsample(settings, out=tmp_path / "run")
    path, authorization, body = server.asked[-1]
    assert (path, authorization, body["model"]) == ("/v1/chat/completions", f"Bearer {KEY}", "writer")
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "user"]
    assert "at most 120 words" in body["messages"][0]["content"]
    assert all(KEY not in file.read_text() for file in done.path.iterdir())


def test_a_broken_off_run_asks_only_for_the_rest(server, settings, tmp_path, listener):
    server.replies = {CAPTIONS[1]: [(401, "no")]}
    with pytest.raises(ModelError, match="HTTP 401"):
        upsample(settings, out=tmp_path / "run")
    asked = len(server.asked)
    heard = listener()
    done = upsample(settings, out=tmp_path / "run", reporter=heard)
    assert "1 of 3 captions are answered already." in heard.notes
    assert [body["messages"][-1]["content"] for *_, body in server.asked[asked:]] == CAPTIONS[1:]
    assert done.missing == 0
    again = upsample(settings, out=tmp_path / "run", reporter=heard)
    assert "nothing is asked again" in heard.notes[-1]
    assert again == done


def test_a_busy_server_is_asked_again(server, settings, tmp_path):
    server.replies = {CAPTIONS[0]: [(503, ""), (429, ""), (200, "A detailed ball.")]}
    assert upsample(settings, out=tmp_path / "run").prompts[0]["prompt"] == "A detailed ball."


def test_no_server(settings, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(UsageError, match="--server without OPENAI_BASE_URL"):
        upsample(settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(task, "_PAUSE_S", 0.01)
    with pytest.raises(ModelError, match="The server does not answer"):
        upsample(settings, out=tmp_path / "run")


def test_a_local_text_model(settings, tmp_path):
    """Random weights of a real architecture: that it is asked in its own chat template, and always answers alike."""
    words = ["[UNK]", "</s>", *sorted({word for caption in CAPTIONS for word in caption.split()})]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="</s>", pad_token="</s>")
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "writer")
    fast.save_pretrained(tmp_path / "writer")
    local = UpsampleSettings(settings.prompts, str(tmp_path / "writer"), words=4)
    with pytest.raises(ModelError, match="has no chat template"):
        upsample(local, out=tmp_path / "none", device="cpu")
    fast.chat_template = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    fast.save_pretrained(tmp_path / "writer")
    done = upsample(local, out=tmp_path / "run", device="cpu")
    assert [row["caption"] for row in done.prompts] == CAPTIONS
    again = upsample(local, out=tmp_path / "again", device="cpu")
    assert [row["answer"] for row in again.prompts] == [row["answer"] for row in done.prompts]
    with pytest.raises(ModelError):
        upsample(UpsampleSettings(settings.prompts, str(tmp_path / "nowhere")), out=tmp_path / "no", device="cpu")


@pytest.mark.parametrize(
    ("answer", "prompt"),
    [
        ('"A ball\n rolls."', "A ball rolls."),
        ("“A ball rolls.”", "A ball rolls."),
        ('A "ball" rolls.', 'A "ball" rolls.'),
        ("I cannot describe this.", ""),
        ("I’m sorry.", ""),
        ("  \n", ""),
        ("As an AI model I have no eyes.", ""),
    ],
)
def test_clean(answer, prompt):
    assert clean(answer) == prompt
