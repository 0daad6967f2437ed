"""The contract of `Store`, on the embedded database and on PostgreSQL alike: every test here runs on both."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
import sqlalchemy as sa

from storage import (
    Arm,
    Axis,
    Counts,
    Curve,
    Outcome,
    Planned,
    Point,
    Result,
    Store,
    Study,
    StudyChanged,
    StudyMissing,
    Trial,
)
from storage.store import LOSSES
from storage.tables import cells

from .conftest import CONVERGED, DIVERGED, FAILED, OOM, PRUNED, curve, grid


def claim(store: Store, k: int, *, worker: str = "me", lease_seconds: float = 60.0) -> tuple[Trial, ...]:
    return store.claim("digits", k, worker=worker, lease_seconds=lease_seconds)


def expire(store: Store, trials: Sequence[Trial]) -> None:
    """Let the leases of these trials run out now, by the database's own clock."""
    ids = [trial.id for trial in trials]
    with store._engine.begin() as connection:
        connection.execute(sa.update(cells).where(cells.c.trial_id.in_(ids)).values(lease_until=0.0))


class TestPlan:
    def test_plan_adds_every_cell_once(self, store: Store, study: Study, points: tuple[Point, ...]) -> None:
        assert store.plan(study, points) == Planned(added=18, present=0)
        assert store.plan(study, points) == Planned(added=0, present=18)
        assert [trial.point for trial in store.trials("digits")] == list(points)
        assert [trial.number for trial in store.trials("digits")] == list(range(18))

    def test_a_point_given_twice_is_one_cell(self, store: Store, study: Study, points: tuple[Point, ...]) -> None:
        assert store.plan(study, points + points[:3]) == Planned(added=18, present=0)

    def test_missing_says_what_plan_would_do_and_does_nothing(
        self, store: Store, study: Study, points: tuple[Point, ...]
    ) -> None:
        assert store.missing(study, points) == Planned(added=18, present=0)
        assert store.studies() == {}
        store.plan(study, points[:10])
        assert store.missing(study, points) == Planned(added=8, present=10)
        assert store.counts("digits") == Counts(waiting=10)

    def test_a_plan_extended_by_arm_rate_and_seed_adds_only_the_difference(
        self, store: Store, study: Study, points: tuple[Point, ...]
    ) -> None:
        store.plan(study, points)
        wider = Axis("lr", (0.01, 0.1, 1.0, 10.0))
        arms = (*(replace(arm, lr=wider) for arm in study.arms), Arm("sgd-0", "sgd", "sgd", 0.0, wider))
        larger = replace(study, arms=arms, seeds=(0, 1, 2))
        assert store.plan(larger, grid(larger)) == Planned(added=48 - 18, present=18)
        assert store.study("digits") == larger
        assert store.plan(study, points) == Planned(added=0, present=18)
        assert store.study("digits") == larger, "planning less takes nothing away"

    def test_the_study_comes_back_as_it_was_planned(
        self, store: Store, study: Study, points: tuple[Point, ...]
    ) -> None:
        store.plan(study, points)
        assert store.study("digits") == study

    def test_a_study_file_with_any_text_comes_back_verbatim(self, store: Store, study: Study) -> None:
        odd = replace(study, text="β = '\\' -- ; DROP TABLE trials;\n\t\"{}%s:name\"", question="<b>ρ?</b> 100% 'so'")
        store.plan(odd, grid(odd))
        assert store.study("digits") == odd

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"workload": "iris"}, "workload is digits; now it is iris"),
            ({"arms": (Arm("sgd-0.9", "sgd", "sgd", 0.5, Axis("lr", (0.01,))),)}, "arm 'sgd-0.9': momentum is 0.9"),
        ],
    )
    def test_another_study_under_the_same_name_is_refused_and_changes_nothing(
        self, store: Store, study: Study, points: tuple[Point, ...], changed: dict[str, object], said: str
    ) -> None:
        store.plan(study, points)
        other = replace(study, **changed)  # type: ignore[arg-type]
        for verb in (store.plan, store.missing):
            with pytest.raises(StudyChanged, match=said):
                verb(other, grid(other))
        assert store.study("digits") == study
        assert store.counts("digits") == Counts(waiting=18)

    def test_a_point_outside_the_grid_is_refused(self, store: Store, study: Study) -> None:
        with pytest.raises(ValueError, match=r"sgd-0.9\|lr=0.5\|seed=0' is not in the grid"):
            store.plan(study, [Point("sgd-0.9", 0.5, 0.9, 0)])
        assert store.studies() == {}

    def test_studies_of_one_store_do_not_meet(self, store: Store, study: Study, points: tuple[Point, ...]) -> None:
        other = replace(study, name="other", workload="iris")
        store.plan(study, points)
        store.plan(other, points[:5])
        claim(store, 3)
        assert store.studies() == {"digits": Counts(waiting=15, running=3), "other": Counts(waiting=5)}


class TestClaim:
    def test_claim_gives_trials_in_planned_order(self, store: Store, study: Study, points: tuple[Point, ...]) -> None:
        store.plan(study, points[::-1])
        assert [trial.point for trial in claim(store, 4)] == list(points[::-1][:4])

    def test_claim_gives_each_trial_to_one_worker(self, store: Store, study: Study, points: tuple[Point, ...]) -> None:
        store.plan(study, points)
        claimed = [trial.point for worker in "abc" for trial in claim(store, 7, worker=worker)]
        assert claimed == list(points)
        assert claim(store, 7) == ()

    def test_a_claimed_trial_is_running_with_its_first_attempt(
        self, store: Store, study: Study, points: tuple[Point, ...]
    ) -> None:
        store.plan(study, points)
        (trial,) = claim(store, 1)
        assert trial == Trial(trial.id, 0, points[0], Outcome.RUNNING, attempt=1)
        assert store.trials("digits")[0] == trial
        assert store.counts("digits") == Counts(waiting=17, running=1)

    def test_claim_by_family_takes_only_its_arms(self, store: Store, study: Study, points: tuple[Point, ...]) -> None:
        store.plan(study, points)
        claimed = store.claim("digits", 10, worker="me", families=["adam"])
        assert [trial.point for trial in claimed] == list(points[12:])
        assert store.claim("digits", 10, worker="me", families=["adam", "lion"]) == ()

    def test_an_unknown_study_is_named_with_those_that_are_known(self, store: Store, study: Study) -> None:
        store.plan(study, grid(study))
        for ask in (store.counts, store.study, store.trials, store.curves, store.unfinished, store.sweep):
            with pytest.raises(StudyMissing, match=r"no study 'digit'. Known: digits"):
                ask("digit")
        with pytest.raises(StudyMissing, match="no study 'digit'"):
            store.claim("digit", 1, worker="me")


class TestLease:
    def test_an_expired_lease_is_lost_without_anybody_doing_anything(
        self, store: Store, study: Study, points: tuple[Point, ...]
    ) -> None:
        store.plan(study, points)
        claim(store, 2, lease_seconds=0.05)
        claim(store, 1)
        time.sleep(0.1)
        assert store.counts("digits") == Counts(waiting=15, running=1, lost=2)
        assert [trial.outcome for trial in store.trials("digits")][:3] == [Outcome.LOST, Outcome.LOST, Outcome.RUNNING]
        assert store.next_expiry("digits") == 0.0

    def test_a_lost_trial_goes_to_the_next_worker_with_a_new_attempt(
        self, store: Store, study: Study, points: tuple[Point, ...]
    ) -> None:
        store.plan(study, points)
        first = claim(store, 2, worker="dead")
        expire(store, first)
        second = claim(store, 3, worker="alive")
        assert [trial.point for trial in second] == list(points[:3])
        assert [trial.attempt for trial in second] == [2, 2, 1]

    def test_recording_renews_the_lease(self, store: Store, study: Study, points: tuple[Point, ...]) -> None:
        store.plan(study, points)
        trials = claim(store, 2, lease_seconds=60.0)
        expire(store, trials)
        assert store.record([(trials[0], curve([2]))]) == ()
        assert store.counts("digits") == Counts(waiting=16, running=1, lost=1)
        assert store.renew(trials) == ()
        assert store.counts("digits") == Counts(waiting=16, running=2)
        assert 55.0 < (store.next_expiry("digits") or 0.0) <= 60.0

    def test_a_worker_that_lost_its_lease_can_write_nothing(
        self, store: Store, study: Study, points: tuple[Point, ...]
    ) -> None:
        store.plan(study, points)
        (old,) = claim(store, 1, worker="slow")
        expire(store, [old])
        (new,) = claim(store, 1, worker="quick")
        assert new.id == old.id
        assert store.record({old: curve([2, 4], loss=9.0)}) == (old,)
        assert store.renew([old]) == (old,)
        assert store.finish([(old, DIVERGED)]) == (old,)
        assert store.fail(old, "too late") is Outcome.LOST
        store.release([old])
        assert store.counts("digits") == Counts(waiting=17, running=1)
        assert store.curves("digits") == {}
        store.record({new: curve([2, 4])})
        assert store.finish([(new, CONVERGED)]) == ()
        assert store.finish([(old, DIVERGED)]) == (old,)
        assert store.trials("digits")[0].result == CONVERGED
        assert store.curves("digits") == {new.id: curve([2, 4])}

    def test_a_released_trial_is_waiting_at_once(self, store: Store, study: Study, points: tuple[Point, ...]) -> None:
        store.plan(study, points)
        trials = claim(store, 3)
        store.release(trials[:2])
        assert store.counts("digits") == Counts(waiting=17, running=1)
        assert [trial.point for trial in claim(store, 2)] == list(points[:2])

    def test_who_released_a_trial_holds_it_no_more(self, store: Store, study: Study, points: tuple[Point, ...]) -> None:
        store.plan(study, points)
        trials = claim(store, 1)
        store.release(trials)
        assert store.finish([(trials[0], CONVERGED)]) == trials

    def test_sweep_returns_how_many_leases_ran_out(self, store: Store, study: Study, points: tuple[Point, ...]) -> None:
        store.plan(study, points)
        expire(store, claim(store, 4))
        assert store.sweep("digits") == 4
        assert store.sweep("digits") == 0
        assert store.counts("digits") == Counts(waiting=14, lost=4)

    def test_what_a_dead_worker_held_is_lost_at_once_when_somebody_saw_it_die(
        self, store: Store, study: Study, points: tuple[Point, ...]
    ) -> None:
        store.plan(study, points)
        dead, alive = claim(store, 2, worker="dead"), claim(store, 3, worker="alive")
        assert store.holders("digits") == ("alive", "dead")
        assert store.bury("digits", "dead") == 2
        assert store.holders("digits") == ("alive",)
        assert store.counts("digits") == Counts(waiting=13, running=3, lost=2)
        assert store.finish([(trial, CONVERGED) for trial in (*dead, *alive)]) == dead

    def test_next_expiry_is_none_when_nothing_runs(self, store: Store, study: Study, points: tuple[Point, ...]) -> None:
        store.plan(study, points)
        assert store.next_expiry("digits") is None


class TestFinish:
    @pytest.mark.parametrize("result", [CONVERGED, DIVERGED, PRUNED, FAILED, OOM], ids=lambda r: r.outcome.value)
    def test_a_result_comes_back_as_it_was(
        self, store: Store, study: Study, points: tuple[Point, ...], result: Result
    ) -> None:
        store.plan(study, points)
        (trial,) = claim(store, 1)
        assert store.finish([(trial, result)]) == ()
        (stored, *rest) = store.trials("digits")
        assert repr(stored.result) == repr(result), "repr, because nan is not equal to nan"
        assert stored.outcome is result.outcome
        assert {other.result for other in rest} == {None}
        assert store.counts("digits") == Counts(**{"waiting": 17, result.outcome.value: 1})

    @pytest.mark.parametrize("loss", [math.inf, -math.inf, math.nan, 1e300, 5e-324])
    def test_any_final_loss_is_kept(self, store: Store, study: Study, points: tuple[Point, ...], loss: float) -> None:
        store.plan(study, points)
        (trial,) = claim(store, 1)
        store.finish([(trial, Result(Outcome.DIVERGED, initial_loss=2.3, final_loss=loss))])
        result = store.trials("digits")[0].result
        assert result is not None
        assert repr(result.final_loss) == repr(loss)

    def test_many_outcomes_finish_in_one_go(self, store: Store, study: Study, points: tuple[Point, ...]) -> None:
        store.plan(study, points)
        results = [CONVERGED, DIVERGED, CONVERGED, PRUNED, OOM, FAILED]
        trials = claim(store, 6)
        assert store.finish(list(zip(trials, results, strict=True))) == ()
        assert store.counts("digits") == Counts(waiting=12, converged=2, diverged=1, pruned=1, oom=1, failed=1)
        assert [repr(trial.result) for trial in store.trials("digits")[:6]] == [repr(result) for result in results]
        assert store.unfinished("digits") == 12

    def test_finishing_twice_is_harmless(self, store: Store, study: Study, points: tuple[Point, ...]) -> None:
        store.plan(study, points)
        (trial,) = claim(store, 1)
        assert store.finish([(trial, CONVERGED)]) == ()
        assert store.finish([(trial, CONVERGED)]) == ()
        assert store.trials("digits")[0].result == CONVERGED
        assert store.renew([trial]) == (), "what we have finished is not lost"

    def test_one_lost_trial_does_not_keep_the_others_from_finishing(
        self, store: Store, study: Study, points: tuple[Point, ...]
    ) -> None:
        store.plan(study, points)
        trials = claim(store, 3)
        expire(store, trials[1:2])
        claim(store, 1, worker="other")
        assert store.finish([(trial, CONVERGED) for trial in trials]) == (trials[1],)
        assert store.counts("digits") == Counts(waiting=15, running=1, converged=2)

    def test_a_trial_that_raises_is_tried_again_and_then_failed(
        self, store: Store, study: Study, points: tuple[Point, ...]
    ) -> None:
        store.plan(study, points[:1])
        became = []
        for attempt in (1, 2, 3):
            (trial,) = claim(store, 1)
            assert trial.attempt == attempt
            became.append(store.fail(trial, f"Traceback {attempt}"))
        assert became == [Outcome.WAITING, Outcome.WAITING, Outcome.FAILED]
        assert claim(store, 1) == ()
        assert store.errors("digits") == {trial.id: "Traceback 3"}
        assert repr(store.trials("digits")[0].result) == repr(Result(Outcome.FAILED, error="Traceback 3"))

    def test_a_traceback_that_no_database_can_keep_is_kept_as_far_as_it_goes(
        self, store: Store, study: Study, points: tuple[Point, ...]
    ) -> None:
        store.plan(study, points[:2])
        one, two = claim(store, 2)
        assert store.fail(one, "bad \0 and \ud800 and β", retries=0) is Outcome.FAILED
        assert store.finish([(two, Result(Outcome.OOM, error="bad \0 and \ud800 and β"))]) == ()
        assert [t.result and t.result.error for t in store.trials("digits")] == ["bad ? and ? and β"] * 2
        assert store.errors("digits") == {one.id: "bad ? and ? and β"}

    def test_a_release_is_not_a_failure(self, store: Store, study: Study, points: tuple[Point, ...]) -> None:
        store.plan(study, points[:1])
        for _ in range(5):
            store.release(claim(store, 1))
        assert store.fail(claim(store, 1)[0], "first error", retries=1) is Outcome.WAITING

    def test_retry_queues_cells_again_by_outcome(self, store: Store, study: Study, points: tuple[Point, ...]) -> None:
        store.plan(study, points)
        trials = claim(store, 5)
        store.record([(trial, curve([2, 4])) for trial in trials])
        store.finish(list(zip(trials, [FAILED, OOM, FAILED, CONVERGED, DIVERGED], strict=True)))
        assert store.retry("digits", [Outcome.FAILED]) == 2
        assert store.counts("digits") == Counts(waiting=15, converged=1, diverged=1, oom=1)
        assert sorted(store.curves("digits")) == sorted(trial.id for trial in (trials[1], trials[3], trials[4]))
        (again, _) = claim(store, 2)
        assert (again.point, again.attempt) == (points[0], 2)
        assert store.finish([(trials[0], CONVERGED)]) == (trials[0],), "the first attempt is over"
        assert store.finish([(again, CONVERGED)]) == ()
        assert store.trials("digits")[0].result == CONVERGED

    @pytest.mark.parametrize("outcome", [Outcome.CONVERGED, Outcome.DIVERGED, Outcome.WAITING, Outcome.RUNNING])
    def test_a_result_is_not_retried(
        self, store: Store, study: Study, points: tuple[Point, ...], outcome: Outcome
    ) -> None:
        store.plan(study, points)
        with pytest.raises(ValueError, match=f"Cells that are {outcome.value} are not retried"):
            store.retry("digits", [outcome])


class TestDeliver:
    def test_deliver_records_finishes_and_renews_in_one_go(
        self, store: Store, study: Study, points: tuple[Point, ...]
    ) -> None:
        store.plan(study, points)
        ended, going_on, silent = claim(store, 3)
        expire(store, [ended, going_on, silent])
        assert store.deliver([(ended, curve([2, 4])), (going_on, curve([2]))], [(ended, CONVERGED)], [silent]) == ()
        assert store.counts("digits") == Counts(waiting=15, running=2, converged=1)
        assert store.curves("digits") == {ended.id: curve([2, 4]), going_on.id: curve([2])}
        assert store.trials("digits")[0].result == CONVERGED
        assert 55.0 < (store.next_expiry("digits") or 0.0) <= 60.0

    def test_of_a_lost_trial_nothing_is_delivered_and_of_the_others_everything(
        self, store: Store, study: Study, points: tuple[Point, ...]
    ) -> None:
        store.plan(study, points)
        lost, kept = claim(store, 2)
        expire(store, [lost])
        (taken,) = claim(store, 1, worker="other")
        assert taken.id == lost.id
        both = [(trial, curve([2])) for trial in (lost, kept)]
        assert store.deliver(both, [(lost, DIVERGED), (kept, CONVERGED)], [lost]) == (lost,)
        assert store.counts("digits") == Counts(waiting=16, running=1, converged=1)
        assert store.curves("digits") == {kept.id: curve([2])}

    def test_a_delivery_may_be_repeated(self, store: Store, study: Study, points: tuple[Point, ...]) -> None:
        store.plan(study, points)
        (trial,) = claim(store, 1)
        for _ in range(2):
            assert store.deliver([(trial, curve([2, 4]))], [(trial, CONVERGED)]) == ()
        assert store.counts("digits") == Counts(waiting=17, converged=1)
        assert store.curves("digits") == {trial.id: curve([2, 4])}

    def test_exchange_delivers_and_claims(self, store: Store, study: Study, points: tuple[Point, ...]) -> None:
        store.plan(study, points)
        claimed, lost = store.exchange("digits", 2, worker="me")
        assert [trial.point for trial in claimed] == list(points[:2])
        expire(store, claimed[1:])
        store.sweep("digits")
        more, lost = store.exchange(
            "digits",
            3,
            worker="me",
            measured=[(trial, curve([2])) for trial in claimed],
            ended=[(trial, CONVERGED) for trial in claimed],
        )
        assert lost == claimed[1:]
        assert [(trial.point, trial.attempt) for trial in more] == [(points[1], 2), (points[2], 1), (points[3], 1)]
        assert store.counts("digits") == Counts(waiting=14, running=3, converged=1)
        assert store.curves("digits") == {claimed[0].id: curve([2])}

    def test_an_expired_lease_that_nobody_has_swept_up_is_delivered_before_the_next_claim(
        self, store: Store, study: Study, points: tuple[Point, ...]
    ) -> None:
        store.plan(study, points)
        mine, others = claim(store, 2), claim(store, 1, worker="dead")
        expire(store, [*mine, *others])
        claimed, lost = store.exchange("digits", 3, worker="me", ended=[(trial, CONVERGED) for trial in mine])
        assert lost == ()
        assert [(trial.point, trial.attempt) for trial in claimed] == [(points[2], 2), (points[3], 1), (points[4], 1)]
        assert store.counts("digits") == Counts(waiting=13, running=3, converged=2)

    def test_what_is_lost_while_it_is_exchanged_is_claimed_again_with_a_new_attempt(
        self, store: Store, study: Study, points: tuple[Point, ...]
    ) -> None:
        store.plan(study, points[:1])
        (trial,) = claim(store, 1)
        store.bury("digits", "me")
        ((again,), lost) = store.exchange("digits", 1, worker="me", ended=[(trial, CONVERGED)])
        assert lost == (trial,)
        assert (again.id, again.attempt) == (trial.id, 2)


class TestLosses:
    """A cell that takes its worker with it, as a crash of the process does."""

    def test_a_cell_that_lost_two_workers_waits_for_the_others_and_is_then_tried_alone(
        self, store: Store, study: Study, points: tuple[Point, ...]
    ) -> None:
        store.plan(study, points[:6])
        for worker in "ab":
            assert len(claim(store, 3, worker=worker)) == 3
            assert store.bury("digits", worker) == 3
        assert [trial.point for trial in claim(store, 6)] == list(points[3:6])
        assert [[trial.point for trial in claim(store, 6)] for _ in range(4)] == [*([p] for p in points[:3]), []]

    def test_a_cell_that_costs_five_workers_has_failed_and_takes_no_other_with_it(
        self, store: Store, study: Study, points: tuple[Point, ...]
    ) -> None:
        store.plan(study, points[:4])
        while trials := claim(store, 4):
            if points[1] in [trial.point for trial in trials]:
                expire(store, trials)
            else:
                store.finish([(trial, CONVERGED) for trial in trials])
        assert store.counts("digits") == Counts(failed=1, converged=3)
        assert [(trial.outcome.value, trial.attempt) for trial in store.trials("digits")] == [
            *[("converged", 3), ("failed", LOSSES), ("converged", 3), ("converged", 3)]
        ]

    def test_both_ways_of_retrying_bring_it_back_as_if_it_had_never_run(
        self, store: Store, study: Study, points: tuple[Point, ...]
    ) -> None:
        store.plan(study, points[:1])
        for outcomes in ([Outcome.LOST], [Outcome.FAILED]):
            poison(store)
            (failed,) = store.trials("digits")
            assert failed.result is not None
            assert str(failed.result.error).startswith("5 workers died with this trial or fell silent, the last of")
            assert "Try: adamom retry STUDY --lost" in str(failed.result.error)
            assert claim(store, 1) == ()
            assert store.retry("digits", outcomes) == 1
            assert store.counts("digits") == Counts(waiting=1)
        poison(store)
        assert store.counts("digits") == Counts(failed=1), "its losses are counted anew"

    def test_retrying_lost_cells_leaves_those_that_raised(
        self, store: Store, study: Study, points: tuple[Point, ...]
    ) -> None:
        store.plan(study, points[:1])
        store.finish([(claim(store, 1)[0], FAILED)])
        assert store.retry("digits", [Outcome.LOST]) == 0

    def test_what_is_given_back_is_not_a_loss(self, store: Store, study: Study, points: tuple[Point, ...]) -> None:
        store.plan(study, points[:2])
        for _ in range(LOSSES):
            store.release(claim(store, 2))
        assert len(claim(store, 2)) == 2


def poison(store: Store) -> None:
    """Let the one cell of the store lose as many workers as it may."""
    for _ in range(LOSSES):
        assert len(claim(store, 3, worker="dead")) == 1
        assert store.bury("digits", "dead") == 1


class TestCurves:
    def test_a_curve_recorded_in_pieces_comes_back_whole(
        self, store: Store, study: Study, points: tuple[Point, ...]
    ) -> None:
        store.plan(study, points)
        one, two = claim(store, 2)
        store.record([(one, curve([0, 2, 4])), (two, curve([0], loss=2.0))])
        store.record([(one, curve([6, 8])), (one, curve([10]))])
        joined = Curve.join([curve([0, 2, 4]), curve([6, 8]), curve([10])])
        assert store.curves("digits") == {one.id: joined, two.id: curve([0], loss=2.0)}

    def test_recording_the_same_piece_twice_keeps_it_once(
        self, store: Store, study: Study, points: tuple[Point, ...]
    ) -> None:
        store.plan(study, points)
        (trial,) = claim(store, 1)
        for _ in range(2):
            assert store.record([(trial, curve([2, 4]))]) == ()
        assert store.curves("digits") == {trial.id: curve([2, 4])}

    def test_the_curve_is_the_one_of_the_attempt_that_counted(
        self, store: Store, study: Study, points: tuple[Point, ...]
    ) -> None:
        store.plan(study, points)
        (first,) = claim(store, 1)
        store.record({first: curve([2, 4, 6], loss=5.0)})
        expire(store, [first])
        (second,) = claim(store, 1)
        assert store.curves("digits") == {}
        store.record({second: curve([2])})
        assert store.curves("digits") == {second.id: curve([2])}
        store.finish([(second, CONVERGED)])
        assert store.curves("digits") == {second.id: curve([2])}

    def test_non_finite_measurements_come_back(self, store: Store, study: Study, points: tuple[Point, ...]) -> None:
        store.plan(study, points)
        (trial,) = claim(store, 1)
        broken = Curve([2, 4], [math.inf, math.nan], [-math.inf, math.nan], [math.nan, 0.0], [0.9, math.nan])  # type: ignore[arg-type]
        store.record({trial: broken})
        assert store.curves("digits") == {trial.id: broken}

    def test_nothing_measured_is_nothing_written(self, store: Store, study: Study, points: tuple[Point, ...]) -> None:
        store.plan(study, points)
        (trial,) = claim(store, 1)
        assert store.record([]) == ()
        assert store.renew([]) == ()
        assert store.finish([]) == ()
        assert store.record({trial: Curve.empty()}) == ()
        assert store.curves("digits") == {}
