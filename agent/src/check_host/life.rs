//! A server's life: started, copied, frozen, thawed, handed over, stopped.

use bytes::Bytes;
use handoff::source::{Final, Mark, State};

use super::{
    report::{Failure, Verdict},
    rules::{self, Rule},
    subject::{Scratch, Subject},
};
use crate::host::{ListedPhase, Mode, Snapshot};

/// The same state, as another host would have named it.
fn elsewhere(state: &State<Bytes>) -> State<Bytes> {
    State { mark: Mark { instance: state.mark.instance ^ 1, ..state.mark }, ..state.clone() }
}

fn another_instance(mark: Mark) -> Mark {
    Mark { instance: mark.instance ^ 1, ..mark }
}

/// The states of a server: at first, and after two changes.
async fn two_states(subject: &Subject) -> Result<(State<Bytes>, State<Bytes>, State<Bytes>), Failure> {
    let scratch = subject.active().await?;
    let first = scratch.state(1).await?;
    scratch.request(1).await.served()?;
    let second = scratch.state(1).await?;
    scratch.request(1).await.served()?;
    Ok((elsewhere(&first), elsewhere(&second), elsewhere(&scratch.state(1).await?)))
}

/// What the server has must be `expected`, and is certainly not one of `others`. A host may write down differently
/// what it has read, so any other state passes.
async fn has(
    scratch: &Scratch<'_>,
    epoch: u64,
    expected: &State<Bytes>,
    others: &[&State<Bytes>],
    rule: &'static Rule,
) -> Result<(), Failure> {
    scratch.snapshot(epoch, None).await.judge(rules::SNAPSHOT, |came| match came {
        Snapshot::State(state) if state.body != expected.body && others.iter().any(|old| old.body == state.body) => {
            let (came, sent) = (state.body.len(), expected.body.len());
            Err((rule, format!("an older state ({came} bytes) than the one that it was given ({sent} bytes)")))
        }
        Snapshot::State(_) => Ok(()),
        Snapshot::Unchanged(_) => Err((rules::SINCE, "304, where the call named no state".into())),
    })
}

async fn is_unchanged(scratch: &Scratch<'_>, epoch: u64, since: Mark, rule: &'static Rule) -> Result<(), Failure> {
    scratch.snapshot(epoch, Some(since)).await.judge(rules::SNAPSHOT, |came| match came {
        Snapshot::Unchanged(_) => Ok(()),
        Snapshot::State(state) => Err((rule, format!("200, revision {}", state.mark.revision))),
    })
}

async fn is_changed(scratch: &Scratch<'_>, epoch: u64, since: Mark, rule: &'static Rule) -> Result<(), Failure> {
    scratch.snapshot(epoch, Some(since)).await.judge(rules::SNAPSHOT, |came| match came {
        Snapshot::State(_) => Ok(()),
        Snapshot::Unchanged(_) => Err((rule, "304".into())),
    })
}

/// From no state.
pub async fn first_start(subject: &Subject) -> Verdict {
    let scratch = subject.active().await?;
    scratch.is_listed(Some((ListedPhase::Active, 1))).await?;
    scratch.request(1).await.served()?;
    Ok(String::new())
}

/// Copying a state that changes.
pub async fn snapshot(subject: &Subject) -> Verdict {
    let scratch = subject.active().await?;
    let first = scratch.state(1).await?;
    is_unchanged(&scratch, 1, first.mark, rules::SINCE).await?;
    is_changed(&scratch, 1, another_instance(first.mark), rules::SINCE).await?;
    scratch.request(1).await.served()?;
    is_changed(&scratch, 1, first.mark, rules::REVISION).await?;
    let second = scratch.state(1).await?;
    is_unchanged(&scratch, 1, second.mark, rules::SINCE).await?;
    scratch.request(1).await.served()?;
    Ok(format!("{} bytes at first, {} after a change", first.body.len(), second.body.len()))
}

/// Again, from a state.
pub async fn restart(subject: &Subject) -> Verdict {
    let (first, second, last) = two_states(subject).await?;
    let scratch = subject.scratch();
    scratch.start(2, 1, Mode::Active, Some(&second)).await.done(rules::START)?;
    has(&scratch, 2, &second, &[&first], rules::START).await?;
    scratch.request(2).await.served()?;
    scratch.state(2).await?;
    scratch.stop(2, 2).await.done(rules::STOP)?;
    scratch.start(4, 1, Mode::Active, Some(&last)).await.done(rules::START)?;
    has(&scratch, 4, &last, &[&first, &second], rules::START).await?;
    scratch.request(4).await.served()?;
    Ok(String::new())
}

/// A standby serves nothing, and then from its own state.
pub async fn standby(subject: &Subject) -> Verdict {
    let (first, state, _) = two_states(subject).await?;
    let scratch = subject.scratch();
    scratch.start(2, 1, Mode::Standby, Some(&state)).await.done(rules::START)?;
    scratch.is_listed(Some((ListedPhase::Standby, 2))).await?;
    scratch.request(2).await.not_here()?;
    scratch.snapshot(2, None).await.refused(409, rules::STANDBY)?;
    scratch.freeze(2, 2, None).await.refused(409, rules::STANDBY)?;
    scratch.thaw(2, 3).await.refused(409, rules::STANDBY)?;
    let other = Mark { revision: state.mark.revision + 1, ..state.mark };
    scratch.activate(2, 4, &Final::Unchanged(other)).await.refused(409, rules::ACTIVATE_OTHER)?;
    let other = another_instance(state.mark);
    scratch.activate(2, 4, &Final::Unchanged(other)).await.refused(409, rules::ACTIVATE_OTHER)?;
    scratch.request(2).await.not_here()?;
    scratch.activate(2, 5, &Final::Unchanged(state.mark)).await.done(rules::ACTIVATE)?;
    has(&scratch, 2, &state, &[&first], rules::ACTIVATE).await?;
    scratch.request(2).await.served_as(rules::ACTIVATE)?;
    scratch.is_listed(Some((ListedPhase::Active, 2))).await?;
    scratch.activate(2, 6, &Final::Unchanged(state.mark)).await.refused(409, rules::ACTIVATE_ONCE)?;
    scratch.request(2).await.served()?;
    Ok(String::new())
}

/// A standby that is given a newer state than it has.
pub async fn activate(subject: &Subject) -> Verdict {
    let (first, second, last) = two_states(subject).await?;
    for standby in [Some(&second), None] {
        let scratch = subject.scratch();
        scratch.start(2, 1, Mode::Standby, standby).await.done(rules::START)?;
        scratch.activate(2, 2, &Final::State(last.clone())).await.done(rules::ACTIVATE)?;
        has(&scratch, 2, &last, &[&first, &second], rules::ACTIVATE).await?;
        scratch.request(2).await.served()?;
        scratch.activate(2, 2, &Final::State(second.clone())).await.refused(409, rules::ACTIVATE_ONCE)?;
    }
    Ok(String::new())
}

/// Frozen means frozen.
pub async fn freeze(subject: &Subject) -> Verdict {
    let scratch = subject.active().await?;
    let first = scratch.state(1).await?;
    scratch.request(1).await.served()?;
    let last = scratch.last(1, 2).await?;
    if last.body == first.body {
        return scratch.freeze(1, 2, None).await.judge(rules::FREEZE, |_| {
            Err((rules::FREEZE, "the state as it was before the last request that was answered".into()))
        });
    }
    scratch.is_listed(Some((ListedPhase::Frozen, 1))).await?;
    scratch.request(1).await.not_here()?;
    scratch.request(2).await.not_here()?;
    again(&scratch, 2, &last).await?;
    again(&scratch, 3, &last).await?;
    Ok(String::new())
}

/// A repeated freeze gives the same.
pub async fn again(scratch: &Scratch<'_>, attempt: u64, last: &State<Bytes>) -> Result<(), Failure> {
    scratch.freeze(1, attempt, None).await.judge(rules::FREEZE, |came| match came {
        Final::State(state) if state == *last => Ok(()),
        Final::State(state) => {
            let (now, before) = (state.mark.revision, last.mark.revision);
            Err((rules::FREEZE, format!("another state (revision {now}) than the freeze before (revision {before})")))
        }
        Final::Unchanged(_) => Err((rules::SINCE, "204, where the call named no state".into())),
    })
}

/// And thawed again.
pub async fn thaw(subject: &Subject) -> Verdict {
    let scratch = subject.active().await?;
    scratch.request(1).await.served()?;
    let last = scratch.last(1, 2).await?;
    scratch.thaw(1, 3).await.done(rules::THAW)?;
    is_unchanged(&scratch, 1, last.mark, rules::THAW).await?;
    scratch.request(1).await.served_as(rules::THAW)?;
    scratch.is_listed(Some((ListedPhase::Active, 1))).await?;
    scratch.thaw(1, 4).await.done(rules::THAW)?;
    scratch.request(1).await.served_as(rules::THAW)?;
    Ok(String::new())
}

/// A last state that the agent has is not sent again, and no other is withheld.
pub async fn unchanged_since(subject: &Subject) -> Verdict {
    let scratch = subject.active().await?;
    let first = scratch.state(1).await?;
    scratch.request(1).await.served()?;
    let is_state = |came| match came {
        Final::State(state) => Ok(state),
        Final::Unchanged(_) => Err((rules::SINCE, "204, where the call named another state".into())),
    };
    let last: State<Bytes> = scratch.freeze(1, 2, Some(first.mark)).await.judge(rules::SINCE, is_state)?;
    scratch.thaw(1, 3).await.done(rules::THAW)?;
    let other = another_instance(last.mark);
    scratch.freeze(1, 4, Some(other)).await.judge(rules::SINCE, is_state)?;
    scratch.thaw(1, 5).await.done(rules::THAW)?;
    let known = scratch.state(1).await?;
    let is_unchanged = |came| match came {
        Final::Unchanged(mark) if mark == known.mark => Ok(()),
        Final::Unchanged(mark) => Err((rules::SINCE, format!("204 with another mark, revision {}", mark.revision))),
        Final::State(_) => Err((rules::SINCE, "200, where the call named the present state".to_owned())),
    };
    scratch.freeze(1, 6, Some(known.mark)).await.judge(rules::SINCE, is_unchanged)?;
    Ok(String::new())
}

/// From every phase.
pub async fn stop(subject: &Subject) -> Verdict {
    let scratch = subject.active().await?;
    let state = elsewhere(&scratch.state(1).await?);
    gone(&scratch, 1, 2, &state).await?;
    let frozen = subject.active().await?;
    frozen.last(1, 2).await?;
    gone(&frozen, 1, 3, &state).await?;
    let standby = subject.scratch();
    standby.start(1, 1, Mode::Standby, Some(&state)).await.done(rules::START)?;
    gone(&standby, 1, 2, &state).await?;
    let other_epoch = subject.active().await?;
    gone(&other_epoch, 2, 1, &state).await?;
    gone(&subject.scratch(), 1, 1, &state).await?;
    Ok(String::new())
}

async fn gone(scratch: &Scratch<'_>, epoch: u64, attempt: u64, state: &State<Bytes>) -> Result<(), Failure> {
    scratch.stop(epoch, attempt).await.done(rules::STOP)?;
    scratch.is_listed(None).await?;
    scratch.request(epoch).await.not_here()?;
    scratch.snapshot(epoch, None).await.refused(404, rules::UNKNOWN)?;
    scratch.freeze(epoch, attempt + 1, None).await.refused(404, rules::UNKNOWN)?;
    scratch.thaw(epoch, attempt + 2).await.refused(404, rules::UNKNOWN)?;
    let last = Final::State(state.clone());
    scratch.activate(epoch, attempt + 3, &last).await.refused(404, rules::UNKNOWN)?;
    scratch.stop(epoch, attempt + 4).await.done(rules::STOP)
}

/// What cannot be loaded leaves nothing behind.
pub async fn cannot_load(subject: &Subject) -> Verdict {
    let (_, state, _) = two_states(subject).await?;
    let scratch = subject.scratch();
    scratch.start_as("no-such-type", 1, 1, Mode::Active, None).await.refused(422, rules::LOAD)?;
    let version = (1..=u32::MAX).find(|version| !subject.kind.loads.contains(version)).unwrap_or(u32::MAX);
    let other = State { version, ..state.clone() };
    scratch.start(1, 2, Mode::Active, Some(&other)).await.refused(422, rules::LOAD)?;
    let mark = Mark { checksum: state.mark.checksum ^ 1, ..state.mark };
    let broken = State { mark, ..state.clone() };
    scratch.start(1, 3, Mode::Active, Some(&broken)).await.refused(422, rules::LOAD)?;
    scratch.start(1, 4, Mode::Standby, Some(&broken)).await.refused(422, rules::LOAD)?;
    scratch.request(1).await.not_here()?;
    scratch.is_listed(None).await?;
    scratch.start(1, 5, Mode::Active, Some(&state)).await.done(rules::START)?;
    scratch.request(1).await.served()?;
    Ok(String::new())
}
