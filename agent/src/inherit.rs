//! What a server that never ran starts from: the state that an earlier server of its name left, or nothing.

use crds::RestoreFrom;
use handoff::{
    ServerId, ServerUid,
    afterlife::{Wish, heir},
};
use store::{Log, State, logs};
use wire::session::assign_failed::Why;

use crate::{
    agent::Pool,
    start::{Failed, read_failed},
};

/// The state to begin with, if there is one.
pub(crate) async fn state(pool: &Pool, id: &ServerId, from: Option<&RestoreFrom>) -> Result<Option<State>, Failed> {
    let (lanes, prefix, wish) = (&pool.store, &pool.settings.store.prefix, wish(from));
    let earlier = logs::earlier(lanes, prefix, id, &wish).await.map_err(read_failed)?;
    let Some(heir) = heir(&earlier, &wish).map_err(|undecided| Failed::new(Why::Undecided, &undecided))? else {
        return Ok(None);
    };
    tracing::info!(server = %id, from = %heir.uid, record = %heir.state_at, "starts from an earlier server's state");
    let left = ServerId { uid: heir.uid, ..id.clone() };
    let log = Log::new(lanes.clone(), prefix, &left, pool.settings.max_state_bytes);
    let log = log.map_err(|error| Failed::new(Why::Store, &error))?;
    log.read_state(heir.state_at).await.map(Some).map_err(read_failed)
}

fn wish(from: Option<&RestoreFrom>) -> Wish {
    match from {
        Some(RestoreFrom { fresh: Some(true), .. }) => Wish::Fresh,
        Some(RestoreFrom { uid: Some(uid), .. }) => Wish::From(ServerUid(uid.clone())),
        _ => Wish::Newest,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use handoff::{
        Epoch, Sequence,
        log::{Authority, Kind, Writer},
    };
    use store::{Body, Draft, Lanes, Memory, Objects};
    use tokio::time::{Duration, Instant};

    use super::*;

    fn id(uid: &str) -> ServerId {
        ServerId { namespace: "ns".into(), name: "room".into(), uid: ServerUid(uid.into()) }
    }

    fn pool() -> Pool {
        let spec = serde_json::from_value(serde_json::json!({ "store": { "s3": { "bucket": "b-1" } } })).unwrap();
        let settings = Arc::new(crds::settings::pool(&spec).unwrap());
        let objects: Arc<dyn Objects> = Arc::<Memory>::default();
        Pool { spec: Arc::new(spec), settings, store: Lanes::from(objects) }
    }

    /// An earlier server's log: its state is its uid, and it ends so.
    async fn left(pool: &Pool, uid: &'static str, last: Kind) {
        let log = Log::new(pool.store.clone(), "", &id(uid), 1 << 20).unwrap();
        let state = Body::State(State { version: 7, body: uid.into() });
        let drafts = [(Kind::Snapshot, state), (last, Body::At { sequence: Sequence(1), version: 7 })];
        for (n, (kind, body)) in (0..).zip(drafts) {
            let authority = Authority::Owner { epoch: Epoch(3), granted: None };
            let draft = Draft { epoch: Epoch(3), kind, writer: Writer::default(), body };
            let until = Instant::now() + Duration::from_secs(5);
            log.append(&authority, draft, Sequence(n), until).await.unwrap();
        }
    }

    async fn begins(pool: &Pool, from: Option<RestoreFrom>) -> Result<String, Why> {
        let state = state(pool, &id("new"), from.as_ref()).await.map_err(|failed| failed.why)?;
        Ok(state.map_or_else(String::new, |state| String::from_utf8(state.body.to_vec()).unwrap()))
    }

    fn uid(uid: &str) -> RestoreFrom {
        RestoreFrom { uid: Some(uid.into()), fresh: None }
    }

    #[tokio::test]
    async fn a_new_server_begins_where_its_predecessor_or_its_resource_says() {
        let pool = pool();
        assert_eq!(begins(&pool, None).await.as_deref(), Ok(""));
        left(&pool, "unwanted", Kind::Tombstone { delete: true }).await;
        assert_eq!(begins(&pool, None).await.as_deref(), Ok(""));
        left(&pool, "kept", Kind::Tombstone { delete: false }).await;
        assert_eq!(begins(&pool, None).await.as_deref(), Ok("kept"));
        assert_eq!(begins(&pool, Some(uid("unwanted"))).await.as_deref(), Ok("unwanted"));
        assert_eq!(begins(&pool, Some(uid("none"))).await, Err(Why::Undecided));
        let fresh = RestoreFrom { uid: None, fresh: Some(true) };
        assert_eq!(begins(&pool, Some(fresh)).await.as_deref(), Ok(""));
        left(&pool, "died", Kind::Claim).await;
        assert_eq!(begins(&pool, None).await, Err(Why::Undecided));
        assert_eq!(begins(&pool, Some(uid("died"))).await.as_deref(), Ok("died"));
    }
}
