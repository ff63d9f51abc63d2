"""What the engine keeps does not grow with the requests that have gone."""

from __future__ import annotations

from tests.engine.engine_story import Story, prompt


def test_the_queue_forgets_what_has_gone() -> None:
    story = Story()
    waiting = story.state.waiting
    for index in range(1000):
        story.ask(f"request-{index}", prompt(2), max_tokens=1)
        story.step()
    story.run()
    assert len(waiting) == 0
    assert len(waiting._deadlines) <= 66
    assert len(waiting._heap) <= 66
