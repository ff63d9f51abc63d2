"""The chat templates of the most used families: the prompts that their documentation shows, and
whatever transformers makes of system messages, tools, several turns, tool calls and results.

The templates of chat_families/ are written for these tests after the formats that the families
document; a checkpoint's own is longer, and leans on the same parts of Jinja.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from server.errors import QuireError
from server.text.chat_template import ChatTemplate
from server.text.template_files import CONFIG_FILE, TEMPLATE_FILE, TEMPLATE_FOLDER, find_template
from server.text.template_worker import RaisedByTemplate, Renderer
from tests.text.test_templates_as_transformers import PATIENT, Noon
from weights.synthetic.tokenizer import write_tokenizer

transformers = pytest.importorskip("transformers")

FOLDER = Path(__file__).parent / "chat_families"
FAMILIES = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.jinja")}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
Messages = Sequence[Mapping[str, Any]]

SYSTEM = {"role": "system", "content": "Be <brief> & «kind»."}
USER = {"role": "user", "content": ' What is the "weather" in Zlín?\n'}
ANSWER = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nSunny ☀️."}
MORE = {"role": "user", "content": "And in 東京? {{ then }}"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city, now.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "The city's «name»"},
                    "days": {"type": "integer"},
                },
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "now",
            "description": "The time.",
            "parameters": {"type": "object", "properties": {}},
        },
    },
]


def call(id: str, name: str, **arguments: Any) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [call("abcdefgh1", "get_weather", city="Zlín", days=2)],
}
CALLS = {
    **CALL,
    "content": "Let me see.",
    "tool_calls": [*CALL["tool_calls"], call("abcdefgh2", "now")],
}
RESULT = {
    "role": "tool",
    "tool_call_id": "abcdefgh1",
    "name": "get_weather",
    "content": '{"sky": "clear", "°C": 21}',
}
OTHER_RESULT = {"role": "tool", "tool_call_id": "abcdefgh2", "name": "now", "content": "12:04"}
CONVERSATIONS: dict[str, tuple[Messages, list[dict[str, Any]] | None]] = {
    "one turn": ([USER], None),
    "a system message": ([SYSTEM, USER], None),
    "several turns": ([SYSTEM, USER, ANSWER, MORE], None),
    "several turns, no system message": ([USER, ANSWER, MORE, ANSWER, USER], None),
    "tools": ([USER], TOOLS),
    "tools and a system message": ([SYSTEM, USER], TOOLS),
    "a call and its result": ([SYSTEM, USER, CALL, RESULT], TOOLS),
    "calls and results, then a turn": (
        [USER, CALLS, RESULT, OTHER_RESULT, ANSWER, MORE],
        TOOLS,
    ),
    "a call that failed to be answered": ([SYSTEM, USER, CALL, MORE], None),
    "two of a role": ([USER, MORE, ANSWER], None),
}
# What each family's documentation shows for a system message and a question, where it has one.
HELLO = {"role": "user", "content": "Hello"}
KIND = {"role": "system", "content": "Be kind."}
DOCUMENTED: dict[str, tuple[Messages, str]] = {
    "chatml": (
        [KIND, HELLO],
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\n",
    ),
    "qwen2_5": (
        [HELLO],
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
        "<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
    ),
    "qwen3": ([HELLO], "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"),
    "llama_2": ([KIND, HELLO], "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHello [/INST]"),
    "llama_3_1": (
        [KIND, HELLO],
        "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 03 Feb 2026\n\nBe kind.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "Hello<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "mistral_v3": ([KIND, HELLO], "<s>[INST] Be kind.\n\nHello[/INST]"),
    "mistral_v7": (
        [KIND, HELLO],
        "<s>[SYSTEM_PROMPT]Be kind.[/SYSTEM_PROMPT][INST]Hello[/INST]",
    ),
    "gemma_2": (
        [HELLO],
        "<s><start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\n",
    ),
    "gemma_3": (
        [KIND, HELLO],
        "<s><start_of_turn>user\nBe kind.\n\nHello<end_of_turn>\n<start_of_turn>model\n",
    ),
    "phi_3": (
        [KIND, HELLO],
        "<|system|>\nBe kind.<|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\n",
    ),
    "phi_4_mini": (
        [KIND, HELLO],
        "<|system|>Be kind.<|end|><|user|>Hello<|end|><|assistant|>",
    ),
    "granite_3": (
        [KIND, HELLO],
        "<|start_of_role|>system<|end_of_role|>Be kind.<|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>Hello<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>",
    ),
    "command_r": (
        [KIND, HELLO],
        "<s><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Be kind.<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hello<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    ),
    "smollm3": (
        [{"role": "system", "content": "Be kind. /no_think"}, HELLO],
        "<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\nToday Date: "
        "03 February 2026\nReasoning Mode: /no_think\n\n## Custom Instructions\n\nBe kind.\n\n"
        "<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
        "<think>\n\n</think>\n",
    ),
    "olmo_2": ([HELLO], "<s><|user|>\nHello\n<|assistant|>\n"),
    "glm_4": ([KIND, HELLO], "[gMASK]<sop><|system|>\nBe kind.<|user|>\nHello<|assistant|>"),
    "exaone_4": (
        [KIND, HELLO],
        "[|system|]\nBe kind.[|endofturn|]\n[|user|]\nHello[|endofturn|]\n[|assistant|]\n"
        "<think>\n\n</think>\n\n",
    ),
    "zephyr": ([HELLO], "<|user|>\nHello</s>\n<|assistant|>\n"),
    "gpt_oss": (
        [KIND, HELLO],
        "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"
        "Knowledge cutoff: 2024-06\nCurrent date: 2026-02-03\n\nReasoning: medium\n\n# Valid "
        "channels: analysis, commentary, final. Channel must be included for every message.<|end|>"
        "<|start|>developer<|message|># Instructions\n\nBe kind.\n\n<|end|><|start|>user<|message|>"
        "Hello<|end|><|start|>assistant",
    ),
    "deepseek_v3": ([KIND, HELLO], "<s>Be kind.<｜User｜>Hello<｜Assistant｜>"),
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, 300)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **TOKENS}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(autouse=True)
def noon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.text.chat_template.datetime", Noon)
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Noon)


def job(messages: Messages, tools: object = None) -> dict[str, Any]:
    """As it reaches a worker: through JSON."""
    now = Noon.now().isoformat()
    text = json.dumps({"messages": messages, "tools": tools, "now": now})
    return dict(json.loads(text))


def outcome(render: Any) -> str:
    """The text, or what was raised: of a template's own refusal its words, else what is wrong."""
    try:
        return f"text: {render()}"
    except RaisedByTemplate as error:
        return f"refused: {error}"
    except Exception as error:
        kind = "refused" if type(error).__name__ == "TemplateError" else type(error).__name__
        return f"{kind}: {error}"


def test_each_family_has_its_documented_prompt() -> None:
    assert set(FAMILIES) == set(DOCUMENTED)
    assert len(FAMILIES) >= 15


@pytest.mark.parametrize("family", DOCUMENTED)
def test_a_family_s_prompt_is_the_documented_one(family: str) -> None:
    messages, expected = DOCUMENTED[family]
    assert Renderer(FAMILIES[family], TOKENS, 10**6).render(job(messages)) == expected


@pytest.mark.parametrize("family", DOCUMENTED)
def test_a_family_renders_as_in_transformers(family: str, reference: Any) -> None:
    source = FAMILIES[family]
    renderer = Renderer(source, TOKENS, 10**6)
    found: dict[str, str] = {}
    for name, (messages, tools) in CONVERSATIONS.items():
        found[name] = outcome(lambda m=messages, t=tools: renderer.render(job(m, t)))
        expected = outcome(
            lambda m=messages, t=tools: reference.apply_chat_template(
                m, tools=t, chat_template=source, tokenize=False, add_generation_prompt=True
            )
        )
        assert found[name] == expected, name
    texts = [text for text in found.values() if text.startswith("text: ")]
    assert len(set(texts)) >= 2
    with_tools = found["tools and a system message"]
    assert (with_tools != found["a system message"]) == ("tools" in source)
    told = "get_weather" in found["a call and its result"]
    assert told == ("tool_calls" in source)


async def test_tools_reach_a_template_through_its_process(reference: Any) -> None:
    source = FAMILIES["qwen2_5"]
    messages, tools = CONVERSATIONS["calls and results, then a turn"]
    template = ChatTemplate(source, TOKENS, PATIENT)
    text = await template.render(messages, tools)
    await template.close()
    assert text == reference.apply_chat_template(
        messages, tools=tools, chat_template=source, tokenize=False, add_generation_prompt=True
    )


LAYOUTS: dict[str, dict[str, object]] = {
    "text in the configuration": {CONFIG_FILE: {"chat_template": "text"}},
    "a list of named ones": {
        CONFIG_FILE: {
            "chat_template": [
                {"name": "tool_use", "template": "tools"},
                {"name": "default", "template": "first"},
                {"name": "default", "template": "last"},
            ]
        }
    },
    "a file of its own over named ones": {
        CONFIG_FILE: {"chat_template": [{"name": "tool_use", "template": "tools"}]},
        TEMPLATE_FILE: "own",
    },
    "a file of its own": {CONFIG_FILE: {"chat_template": "text"}, TEMPLATE_FILE: "own"},
    "a file of its own beside others": {
        TEMPLATE_FILE: "own",
        f"{TEMPLATE_FOLDER}/rag.jinja": "rag",
        f"{TEMPLATE_FOLDER}/tool_use.jinja": "tools",
    },
    "others over the configuration": {
        CONFIG_FILE: {"chat_template": "text"},
        f"{TEMPLATE_FOLDER}/default.jinja": "of the folder",
        f"{TEMPLATE_FOLDER}/tool_use.jinja": "tools",
    },
    "a default in the folder": {
        TEMPLATE_FILE: "own",
        f"{TEMPLATE_FOLDER}/default.jinja": "of the folder",
    },
    "tools alone, by name": {
        CONFIG_FILE: {"chat_template": [{"name": "tool_use", "template": "tools"}]}
    },
    "tools alone, in the folder": {f"{TEMPLATE_FOLDER}/tool_use.jinja": "tools"},
    "none": {CONFIG_FILE: {}},
    "no default": {f"{TEMPLATE_FOLDER}/rag.jinja": "rag"},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_s_template_is_the_one_that_transformers_takes(name: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 300)
    (tmp_path / CONFIG_FILE).unlink()
    (tmp_path / TEMPLATE_FOLDER).mkdir()
    for file, content in LAYOUTS[name].items():
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / file).write_text(text)
    found = find_template(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for tools, ours in ((None, found), (TOOLS, found and (found.for_tools or found))):
        try:
            expected = theirs.get_chat_template(tools=tools)
        except ValueError:  # there is none, or none for such a chat
            assert ours is None or ours.problem is not None
        else:
            assert ours is not None and (ours.source, ours.problem) == (expected, None)


async def test_a_chat_with_tools_is_rendered_by_its_own_template(tmp_path: Path) -> None:
    (tmp_path / TEMPLATE_FOLDER).mkdir()
    (tmp_path / TEMPLATE_FILE).write_text("plain {{ tools }}")
    (tmp_path / TEMPLATE_FOLDER / "tool_use.jinja").write_text("{{ tools[1].function.name }}")
    template = ChatTemplate.from_folder(tmp_path, TOKENS, PATIENT)
    assert template is not None
    assert await template.render([USER], TOOLS) == "now"
    assert await template.render([USER]) == "plain None"
    await template.close()
    (tmp_path / TEMPLATE_FOLDER / "tool_use.jinja").write_bytes(b"\xff")
    template = ChatTemplate.from_folder(tmp_path, TOKENS, PATIENT)
    assert template is not None
    assert await template.render([USER]) == "plain None"
    with pytest.raises(QuireError, match=r"tool_use\.jinja: it is not UTF-8"):
        await template.render([USER], TOOLS)
    await template.close()
