//! Calls that come late, twice, too early, or all at once.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use futures::future::{join, join_all};
use handoff::source::{Final, Mark, State};
use tokio::time::{Duration, sleep};

use super::{
    exchange::{Answered, Exchange},
    life::again,
    report::{Failure, Verdict},
    rules::{self, Rule},
    subject::{Scratch, Subject},
};
use crate::host::Mode;

/// Freezes under load, each of a server of its own: how requests fall around a freeze is chance.
const ROUNDS: usize = 8;

/// Requests at once.
const CLIENTS: usize = 8;

/// Answers that a freeze waits for, so that it comes into the middle.
const WARM: u64 = 6;

/// Requests of one client at most.
const REQUESTS: usize = 60;

/// Answers before a freeze that are looked for in its state. Not more: a server may keep the newest only.
const RECENT: u64 = 16;

/// A lower epoch or attempt is refused, whatever the phase.
pub async fn late(subject: &Subject) -> Verdict {
    let scratch = subject.scratch();
    scratch.start(3, 5, Mode::Active, None).await.done(rules::START)?;
    let state = scratch.state(3).await?;
    for (epoch, attempt) in [(3, 4), (2, 9)] {
        late_calls(&scratch, epoch, attempt, &state).await?;
    }
    scratch.snapshot(2, None).await.refused(412, rules::LATE_SNAPSHOT)?;
    scratch.request(2).await.not_here()?;
    scratch.request(3).await.served()?;
    scratch.last(3, 6).await?;
    scratch.thaw(3, 8).await.done(rules::THAW)?;
    scratch.freeze(3, 7, None).await.refused(412, rules::LATE)?;
    scratch.request(3).await.served()?;
    scratch.stop(3, 10).await.done(rules::STOP)?;
    late_calls(&scratch, 3, 9, &state).await?;
    late_calls(&scratch, 2, 11, &state).await?;
    scratch.request(3).await.not_here()?;
    scratch.is_listed(None).await?;
    let never_here = subject.scratch();
    never_here.stop(2, 1).await.done(rules::STOP)?;
    never_here.start(1, 9, Mode::Standby, None).await.refused(412, rules::LATE)?;
    Ok(String::new())
}

async fn late_calls(scratch: &Scratch<'_>, epoch: u64, attempt: u64, state: &State<Bytes>) -> Result<(), Failure> {
    scratch.start(epoch, attempt, Mode::Active, Some(state)).await.refused(412, rules::LATE)?;
    scratch.freeze(epoch, attempt, None).await.refused(412, rules::LATE)?;
    scratch.thaw(epoch, attempt).await.refused(412, rules::LATE)?;
    scratch.activate(epoch, attempt, &Final::State(state.clone())).await.refused(412, rules::LATE)?;
    scratch.stop(epoch, attempt).await.refused(412, rules::LATE)
}

/// A higher epoch is not the one that is here.
pub async fn higher(subject: &Subject) -> Verdict {
    let scratch = subject.active().await?;
    let state = scratch.state(1).await?;
    scratch.snapshot(2, None).await.refused(409, rules::HIGHER)?;
    scratch.freeze(2, 1, None).await.refused(409, rules::HIGHER)?;
    scratch.thaw(2, 2).await.refused(409, rules::HIGHER)?;
    scratch.activate(2, 3, &Final::State(state.clone())).await.refused(409, rules::HIGHER)?;
    scratch.start(2, 4, Mode::Active, Some(&state)).await.refused(409, rules::START_ONCE)?;
    scratch.request(2).await.not_here()?;
    scratch.request(1).await.served()?;
    Ok(String::new())
}

/// The same call, twice at the same time.
pub async fn twice(subject: &Subject) -> Verdict {
    let source = subject.active().await?;
    source.request(1).await.served()?;
    let state = source.state(1).await?;
    let scratch = subject.scratch();
    let start = || scratch.start(1, 1, Mode::Standby, Some(&state));
    once(join(start(), start()).await, rules::START, rules::START_ONCE)?;
    let last = Final::Unchanged(state.mark);
    let activate = || scratch.activate(1, 2, &last);
    once(join(activate(), activate()).await, rules::ACTIVATE, rules::ACTIVATE_ONCE)?;
    scratch.request(1).await.served()?;
    let (first, second) = join(scratch.last(1, 3), scratch.last(1, 3)).await;
    let (first, _) = (first?, second?);
    again(&scratch, 3, &first).await?;
    scratch.thaw(1, 4).await.done(rules::THAW)?;
    let (first, second) = join(scratch.stop(1, 5), scratch.stop(1, 5)).await;
    first.done(rules::STOP)?;
    second.done(rules::STOP)?;
    Ok(String::new())
}

fn once(both: (Exchange<Mark>, Exchange<Mark>), done: &'static Rule, not: &'static Rule) -> Result<(), Failure> {
    let (first, second) = match both {
        (first, second) if first.came.is_ok() => (first, second),
        (first, second) => (second, first),
    };
    first.done(done)?;
    second.refused(409, not)
}

/// What the clients of one round saw.
#[derive(Default)]
struct Round {
    answered: AtomicU64,
    frozen: AtomicBool,
}

/// One client's last successes, by their place among all, and the request that was not taken.
#[derive(Default)]
struct Client {
    taken: Vec<(u64, String)>,
    not_taken: Option<String>,
}

/// Freezes that come into the middle of requests.
pub async fn freeze_under_load(subject: &Subject) -> Verdict {
    let mut answered = 0;
    for _ in 0..ROUNDS {
        answered += freeze_once(subject).await?;
    }
    Ok(format!("{ROUNDS} freezes, {answered} requests answered before them"))
}

async fn freeze_once(subject: &Subject) -> Result<u64, Failure> {
    let scratch = subject.active().await?;
    // A server need not keep a request's text in its state: then only the state as a whole is compared.
    let token = subject.token();
    scratch.request_with(1, &token).await.served()?;
    let visible = has(&scratch.state(1).await?, &token);
    let round = Round::default();
    let clients = join_all((0..CLIENTS).map(|_| client(&scratch, &round)));
    let (clients, last) = join(clients, freeze_in_the_middle(&scratch, &round)).await;
    let last = last?;
    let clients = clients.into_iter().collect::<Result<Vec<_>, _>>()?;
    again(&scratch, 3, &last).await.map_err(|failure| Failure { rule: rules::NOTHING_AFTER, ..failure })?;
    if visible {
        compare(&scratch, &clients, &last, round.answered.load(Ordering::Relaxed)).await?;
    }
    scratch.thaw(1, 4).await.done(rules::THAW)?;
    let thawed = scratch.state(1).await?;
    if thawed.body != last.body {
        let came = "another state after the thaw than the freeze had given".to_owned();
        return scratch.snapshot(1, None).await.judge(rules::NOTHING_AFTER, |_| Err((rules::NOTHING_AFTER, came)));
    }
    scratch.request(1).await.served()?;
    Ok(round.answered.load(Ordering::Relaxed))
}

fn has(state: &State<Bytes>, token: &str) -> bool {
    state.body.windows(token.len()).any(|part| part == token.as_bytes())
}

/// Sends requests until one is not taken.
async fn client(scratch: &Scratch<'_>, round: &Round) -> Result<Client, Failure> {
    let mut client = Client::default();
    for _ in 0..REQUESTS {
        let token = scratch.token();
        let was_frozen = round.frozen.load(Ordering::Relaxed);
        let exchange = scratch.request_with(1, &token).await;
        if exchange.came.as_ref().is_ok_and(Answered::is_not_here) {
            client.not_taken = Some(token);
            break;
        }
        if was_frozen {
            exchange.not_here()?;
            break;
        }
        exchange.served()?;
        client.taken.push((round.answered.fetch_add(1, Ordering::Relaxed), token));
    }
    Ok(client)
}

async fn freeze_in_the_middle(scratch: &Scratch<'_>, round: &Round) -> Result<State<Bytes>, Failure> {
    for _ in 0..1000 {
        if round.answered.load(Ordering::Relaxed) >= WARM {
            break;
        }
        sleep(Duration::from_millis(1)).await;
    }
    let last = scratch.last(1, 2).await;
    round.frozen.store(true, Ordering::Relaxed);
    last
}

async fn compare(scratch: &Scratch<'_>, clients: &[Client], last: &State<Bytes>, answered: u64) -> Result<(), Failure> {
    let recent = clients.iter().flat_map(|client| &client.taken).filter(|(place, _)| place + RECENT >= answered);
    let missing = recent.map(|(_, token)| token).find(|token| !has(last, token));
    let kept = clients.iter().filter_map(|client| client.not_taken.as_ref()).find(|token| has(last, token));
    let came = match (missing, kept) {
        (None, None) => return Ok(()),
        (Some(token), _) => {
            format!("the request with {token:?} was answered with success, and is not in the last state")
        }
        (None, Some(token)) => format!("the request with {token:?} was answered 421, and is in the last state"),
    };
    scratch.freeze(1, 3, None).await.judge(rules::NOTHING_AFTER, |_| Err((rules::NOTHING_AFTER, came)))
}

/// Whether the host is still well after all this: nothing of the checks is left.
pub async fn nothing_left(subject: &Subject) -> Verdict {
    subject.clean_up().await;
    subject.listed().await.judge(rules::LIST, |all| match all.as_slice() {
        [] => Ok(String::new()),
        [first, ..] => Err((rules::STOP, format!("{} servers, {} among them", all.len(), first.uid))),
    })
}
