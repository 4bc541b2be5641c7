//! Closing the log of a deleted server, so that nothing that is still on its way starts it again.

use std::sync::Arc;

use handoff::{
    Sequence, ServerId,
    claim::{Refusal, Start, decide},
    log::{Authority, Kind, Writer},
};
use store::{AppendError, Body, Draft, Log, logs};
use tokio::time::Instant;
use wire::session::{self, assign_failed::Why};

use crate::{
    agent::{APPEND, Agent, Pool},
    start::{Failed, Grounds, TRIES, begin, read_failed, refused, report, supersedes},
};

/// Carries out the operator's word about a server that nobody holds, in the background. It is answered as an assignment
/// is: by `AssignFailed`, which says `Deleted` once the log is closed; or by `Held`, if the server is here all the same.
pub fn ordered(agent: &Arc<Agent>, order: session::Bury) {
    let Some(assign) = order.assign else { return };
    let Some(id) = begin(agent, &assign) else { return };
    let agent = agent.clone();
    tokio::spawn(async move {
        let result = bury(&agent, &id, &assign, order.delete_log).await;
        agent.starting.end(&id.uid);
        let answer = result.map_or_else(|failed| failed, |()| Failed::new(Why::Deleted, &"the log is closed"));
        report(&agent, &assign, answer);
    });
}

/// Notes that a log is to go a day after its Tombstone, which is written next. Without the note it stays until
/// `durable-agent store gc` finds it.
pub async fn mark(agent: &Agent, server: &ServerId) {
    let Ok(pool) = agent.pool() else { return };
    if let Err(error) = logs::mark_deleted(&pool.store, &pool.settings.store.prefix, server).await {
        tracing::warn!(%server, %error, "a deleted server's log may have to be deleted by hand");
    }
}

async fn bury(agent: &Arc<Agent>, id: &ServerId, assign: &session::Assign, delete: bool) -> Result<(), Failed> {
    agent.receiving.withdraw(&id.uid, "the server is deleted");
    if agent.receiving.has(&id.uid) {
        return Err(Failed::new(Why::NotHere, &"a handoff of it to this pod is under way"));
    }
    let pool: Pool = agent.pool().map_err(|problem| Failed::new(Why::NotHere, &problem))?;
    let log = agent.open_log(&pool, id).map_err(|error| Failed::new(Why::Store, &error))?;
    if delete {
        mark(agent, id).await;
    }
    let grounds = Grounds { heartbeats: pool.heartbeats(), silent: &agent.silent };
    close(&agent.lease.writer(), &log, &grounds, assign, delete).await
}

/// A Tombstone where a start would write its Claim.
async fn close(
    me: &Writer,
    log: &Log,
    grounds: &Grounds<'_>,
    assign: &session::Assign,
    delete: bool,
) -> Result<(), Failed> {
    let supersedes = supersedes(assign);
    let mut hint = Sequence(assign.hint);
    for _ in 0..TRIES {
        let newest = log.read_newest(hint).await.map_err(read_failed)?.map(|newest| newest.header);
        let (epoch, after, state_at, doubts) = match decide(newest.as_ref(), supersedes.as_ref(), me) {
            // It never ran, and there is no log to close.
            Start::Claim { after: Sequence::NONE, .. } | Start::Refuse(Refusal::Deleted) => return Ok(()),
            Start::Claim { epoch, after, state_at, doubts }
            | Start::ServeGrant { epoch, after, state_at, doubts, .. } => (epoch, after, state_at, doubts),
            Start::Refuse(refusal) => return Err(refused(&refusal, newest)),
        };
        grounds.look_up(&doubts).await?;
        let version = newest.map_or(0, |newest| newest.state_version);
        let draft = Draft {
            epoch,
            kind: Kind::Tombstone { delete },
            writer: me.clone(),
            body: Body::At { sequence: state_at, version },
        };
        match log.append(&Authority::Reader, draft, after, Instant::now() + APPEND).await {
            Ok(_) => return Ok(()),
            Err(AppendError::Fenced(found)) => hint = found.sequence,
            Err(error) => return Err(Failed::new(Why::Store, &error)),
        }
    }
    Err(Failed::new(Why::Store, &"the log moved on faster than it could be closed"))
}

#[cfg(test)]
mod tests {
    use handoff::{Epoch, HandoffId, PodUid, ServerUid, claim::Doubt, log::Grantee};
    use store::{Heartbeats, Lanes, Memory, Objects, State};

    use super::*;
    use crate::start::Silent;

    const UNWANTED: Kind = Kind::Tombstone { delete: true };

    fn writer(pod: &str) -> Writer {
        Writer { pod: PodUid(pod.into()), ..Writer::default() }
    }

    fn log() -> Log {
        let server = ServerId { namespace: "ns".into(), name: "room".into(), uid: ServerUid("u".into()) };
        Log::new(lanes(Memory::default()), "", &server, 1 << 20).unwrap()
    }

    fn lanes(memory: Memory) -> Lanes {
        let objects: Arc<dyn Objects> = Arc::new(memory);
        Lanes::from(objects)
    }

    /// A Snapshot of epoch 3 by pod `a`, and after it this.
    async fn written(last: Option<Kind>) -> Log {
        let log = log();
        let state = Body::State(State { version: 2, body: "state".into() });
        let drafts = [(Kind::Snapshot, state)].into_iter();
        let drafts = drafts.chain(last.map(|kind| (kind, Body::At { sequence: Sequence(1), version: 2 })));
        for (n, (kind, body)) in (0..).zip(drafts) {
            let authority = Authority::Owner { epoch: Epoch(3), granted: None };
            let draft = Draft { epoch: Epoch(3), kind, writer: writer("a"), body };
            log.append(&authority, draft, Sequence(n), Instant::now() + APPEND).await.unwrap();
        }
        log
    }

    async fn closed(log: &Log, over: Option<(u64, &str)>) -> Result<Option<(Epoch, Kind)>, Why> {
        let (superseded_epoch, owner) = over.unwrap_or_default();
        let assign =
            session::Assign { superseded_epoch, superseded_pod_uid: owner.into(), ..session::Assign::default() };
        let silent = Silent::default();
        let nobody = Grounds { heartbeats: Heartbeats::new(lanes(Memory::default()), ""), silent: &silent };
        close(&writer("b"), log, &nobody, &assign, true).await.map_err(|failed| failed.why)?;
        let newest = log.read_newest(Sequence::NONE).await.unwrap();
        Ok(newest.map(|newest| (newest.header.epoch, newest.header.kind)))
    }

    #[tokio::test]
    async fn a_log_is_closed_on_the_grounds_on_which_it_would_be_claimed() {
        let over = Some((3, "a"));
        assert_eq!(closed(&written(None).await, over).await, Ok(Some((Epoch(5), UNWANTED))));
        assert_eq!(closed(&written(Some(Kind::Release)).await, None).await, Ok(Some((Epoch(5), UNWANTED))));
        // Whoever wrote it may serve it still.
        assert_eq!(closed(&written(None).await, None).await, Err(Why::RefusedByLog));
        assert_eq!(closed(&written(None).await, Some((1, "a"))).await, Err(Why::RefusedByLog));
        let grant = |to| Some(Kind::Grant(Grantee { to: writer(to), handoff: HandoffId(1) }));
        assert_eq!(closed(&written(grant("c")).await, over).await, Err(Why::Granted));
        assert_eq!(closed(&written(grant("b")).await, over).await, Ok(Some((Epoch(4), UNWANTED))));
    }

    #[tokio::test]
    async fn the_log_of_a_pod_that_is_only_cut_off_stays_open() {
        let (log, heartbeats) = (written(None).await, Heartbeats::new(lanes(Memory::default()), ""));
        let assign = session::Assign {
            superseded_epoch: 3,
            superseded_pod_uid: "a".into(),
            superseded_silent: Some(session::Heartbeat { generation: 0, counter: 4 }),
            ..session::Assign::default()
        };
        heartbeats.write(&writer("a"), 5).await.unwrap();
        let silent = Silent::default();
        let alive = Grounds { heartbeats, silent: &silent };
        let refused = close(&writer("b"), &log, &alive, &assign, true).await.unwrap_err();
        assert_eq!(refused.why, Why::Alive);
        let over = Grounds { heartbeats: Heartbeats::new(lanes(Memory::default()), ""), silent: &silent };
        assert!(close(&writer("b"), &log, &over, &assign, true).await.is_ok());
        assert!(alive.look_up(&[Doubt { of: writer("a"), above: 4 }]).await.is_ok(), "it is known");
        assert!(alive.look_up(&[Doubt { of: writer("a"), above: 3 }]).await.is_err());
    }

    #[tokio::test]
    async fn what_is_closed_or_never_was_stays_as_it_is() {
        let kept = Kind::Tombstone { delete: false };
        let log = written(Some(kept.clone())).await;
        assert_eq!(closed(&log, Some((3, "a"))).await, Ok(Some((Epoch(3), kept))));
        assert_eq!(closed(&self::log(), None).await, Ok(None));
        assert_eq!(closed(&self::log(), Some((3, "a"))).await, Err(Why::Corrupt), "there should be one");
    }

    #[tokio::test]
    async fn the_state_is_found_from_the_tombstone() {
        let log = written(Some(Kind::Release)).await;
        closed(&log, None).await.unwrap();
        let newest = log.newest_known().unwrap();
        assert_eq!((newest.state_at, newest.state_version), (Sequence(1), 2));
    }
}
