"""The chat template: what it gives, what it may not do, and that it always ends."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from server.errors import ErrorCode, QuireError
from server.text.chat_template import ChatTemplate, TemplateLimits

USER = {"role": "user", "content": "深度学习是 <b>"}
PATIENT = TemplateLimits(cpu_seconds=20, wall_seconds=600, max_characters=100_000)
QUICK = replace(PATIENT, cpu_seconds=0.7)


def render(
    source: str,
    messages: tuple[Mapping[str, str], ...] = (USER,),
    variables: Mapping[str, str] | None = None,
    limits: TemplateLimits = PATIENT,
) -> str:
    async def story() -> str:
        template = ChatTemplate(source, variables, limits)
        try:
            return await template.render(messages)
        finally:
            await template.close()

    return asyncio.run(story())


def refusal(source: str, limits: TemplateLimits = PATIENT) -> QuireError:
    with pytest.raises(QuireError) as raised:
        render(source, limits=limits)
    return raised.value


def test_messages_special_tokens_and_the_generation_prompt_are_there() -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m['content'] | trim }}\n"
        "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    text = render(source, variables={"bos_token": "<s>"})
    assert text == "<s>[user] 深度学习是 <b>\n[assistant]"


def test_the_usual_helpers_are_there() -> None:
    assert render("{{ messages | tojson }}") == json.dumps([USER], ensure_ascii=False)
    assert render("{{ strftime_now('%Y') }}").isdigit()
    assert (
        render("{% for i in range(9) %}{% if i > 2 %}{% break %}{% endif %}{{ i }}{% endfor %}")
        == "012"
    )


def test_what_is_marked_for_a_trainer_is_text_like_any_other() -> None:
    source = (
        "{% for m in messages %}{% generation %}{% set mark = '!' %}{{ m.role }}{{ mark }}"
        "{% endgeneration %}{{ mark }}{% endfor %}"
    )
    assert render(source) == "user!"
    transformers = pytest.importorskip("transformers.utils.chat_template_utils")
    [expected], _ = transformers.render_jinja_template([[USER]], chat_template=source)
    assert render(source) == expected


def test_what_the_template_raises_is_the_clients_to_fix() -> None:
    error = refusal("{{ raise_exception('roles must alternate') }}")
    assert error.code is ErrorCode.INVALID_VALUE
    assert "roles must alternate" in error.message


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}"
        "{% endfor %}{{ ns.s }}",
        "{{ 'x' * 10 ** 10 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ range(10 ** 9) | list }}",
    ],
)
def test_a_template_that_would_not_end_is_ended(source: str) -> None:
    assert refusal(source, QUICK).code is ErrorCode.INTERNAL


def test_a_text_without_end_is_cut_short() -> None:
    error = refusal("{% for i in range(99999) %}xxxxxxxxxx{% endfor %}")
    assert error.code is ErrorCode.CONTEXT_LENGTH


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% include '/etc/passwd' %}",
        "{{ messages[0].nothing.more }}",
        "{% if %}",
    ],
)
def test_the_sandbox_holds_and_a_broken_template_is_a_server_error(source: str) -> None:
    assert refusal(source).code is ErrorCode.INTERNAL


async def test_a_cancelled_rendering_leaves_no_stale_answer_behind() -> None:
    template = ChatTemplate("{{ messages[0].content }}", limits=PATIENT)
    await template.start()
    for index in range(5):
        task = asyncio.create_task(template.render([{"role": "user", "content": "stale"}]))
        await asyncio.sleep(0.0005 * index)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await template.render([USER]) == USER["content"]
    await template.close()


def started(template: ChatTemplate | None) -> ChatTemplate:
    assert template is not None

    async def story() -> None:
        await template.start()
        await template.close()

    asyncio.run(story())
    return template


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% if %}", "line 1: Expected an expression"),
        ("{{ bos_token }}\n\n{% weave %}", "line 3: Encountered unknown tag 'weave'"),
        ("{{ messages | nothing }}", "line 1: No filter named 'nothing'"),
        ("{% for m in messages %}{{ m.content }}", "line 1: Unexpected end of template"),
    ],
)
@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_template_that_is_none_is_told_at_start_with_its_file_and_line(
    source: str, words: str, file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = source if file.endswith("jinja") else json.dumps({"chat_template": source})
    (tmp_path / file).write_text(text)
    template = started(ChatTemplate.from_folder(tmp_path, limits=PATIENT))
    assert template.is_broken
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    told = f"{tmp_path / file} cannot be used, so chats will be refused: {words}"
    assert record.getMessage().startswith(told)


def test_a_good_template_is_told_of_in_no_word(caplog: pytest.LogCaptureFixture) -> None:
    assert not started(ChatTemplate("{{ messages[0].content }}")).is_broken
    assert caplog.records == []
