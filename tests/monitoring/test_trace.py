import jax
import pytest

from drkd_jax.errors import UserError
from drkd_jax.monitoring.trace import Trace, read_steps


def test_a_number_of_steps_begins_after_the_warm_up():
    assert read_steps("", 0) == range(0)
    assert read_steps("2", 10) == range(13, 15)
    assert read_steps("100:110", 10) == range(100, 110)


@pytest.mark.parametrize(
    ("text", "start", "told"),
    [("100:110", 109, True), ("100:110", 108, False), ("5", 8, False), ("900:910", 0, True)],
)
def test_steps_that_the_session_does_not_have_are_told(caplog, text, start, told):
    read_steps(text, start, 200)
    words = f"--profile={text}: nothing is traced, this session has steps {start + 1} to 200"
    assert caplog.messages == ([words] if told else [])


@pytest.mark.parametrize("text", ["many", "5:5", "9:3", "0", "-2", "0:4", "1:2:3", ":"])
def test_a_wrong_number_is_told(text):
    with pytest.raises(UserError, match=f"--profile={text}"):
        read_steps(text, 0)


def test_it_ends_with_its_last_step_or_with_the_run(tmp_path):
    trace = Trace(tmp_path, range(2, 4), silent=True)
    for step in (1, 2, 3):
        trace.before(step)
        assert trace.ends_with(step, last=False) == (step == 3)
        assert trace.ends_with(step, last=True) == (step > 1)
    trace.stop()
    assert not trace.ends_with(3, last=True)
    assert not any(tmp_path.iterdir())


def test_a_trace_that_the_system_refuses_is_told_once(tmp_path, monkeypatch):
    said = "OUT_OF_RANGE: /x/vm.xplane.pb; No space left on device"

    def stop():
        raise RuntimeError(said)

    monkeypatch.setattr(jax.profiler, "start_trace", lambda _: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", stop)
    trace = Trace(tmp_path, range(1, 3))
    trace.before(1)
    with pytest.raises(UserError, match=r"profile: cannot be written \(the disk is full\)"):
        trace.stop()
    trace.stop()  # at the end of the run: nothing is left to end

    trace.before(2)
    said = "another fault"
    with pytest.raises(RuntimeError, match="another fault"):
        trace.stop()
