//! What holds for a pool and for one server: the server's word, then the pool's entry for its type, then the pool's,
//! then the default. Pure; the results are plain standard types, so that nothing else needs to know the resources.

use std::{ops::RangeInclusive, time::Duration};

use crate::{
    ByteSize, DurableServerPoolSpec, DurableServerSpec, Duration as Text, PoolHandoff, S3, Sticky, Transfer,
    TypeOverride,
    limits::{self, Sizes, Times},
};

/// `config` as JSON may be this long: it travels in an HTTP header, in base64, and many servers take 8 KiB a header.
pub const MAX_CONFIG_BYTES: usize = 4 << 10;

/// What holds for a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // each is a wish of its own
pub struct Pool {
    /// Where state is kept.
    pub store: Bucket,
    /// How often dirty servers are synced.
    pub sync_interval: Duration,
    /// The largest state of one server, in bytes.
    pub max_state_bytes: u64,
    /// State-bearing records kept of each server.
    pub keep_records: u32,
    /// What the host needs to stop after the drain.
    pub host_stop_time: Duration,
    /// How pods are drained.
    pub drain: Drain,
    /// Servers in one pod, all types together.
    pub max_servers_per_pod: Option<u32>,
    /// Prefer pods of the newest revision.
    pub prefer_newest_revision: bool,
    /// Even out what pods have.
    pub rebalance: bool,
    /// What servers stay near to, from the narrowest to the widest.
    pub sticky: Vec<Near>,
    /// The Service that servers follow.
    pub active_service: Option<String>,
    /// No server is moved while its pod lives.
    pub paused: bool,
    /// Servers move before their pods shut down.
    pub ahead: bool,
    /// How long an agent may serve on one sign of life.
    pub lease_duration: Duration,
    /// Servers that one pod starts at once.
    pub max_starts: u32,
}

/// A place in an S3 bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// Its name.
    pub bucket: String,
    /// What all keys begin with; empty for nothing.
    pub prefix: String,
    /// Its region.
    pub region: String,
    /// A server other than AWS.
    pub endpoint: Option<String>,
    /// The bucket is in the path, not in the host name.
    pub force_path_style: bool,
    /// Requests of one pod in a second, at most.
    pub max_requests_per_second: u32,
    /// PEM certificates to trust instead of the public authorities.
    pub ca_bundle: Option<String>,
}

/// A label of nodes that servers stay near by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Near {
    /// The label.
    pub label: String,
    /// For how long a server that lost its pod is started nowhere else.
    pub lasts: Duration,
}

/// How a pod is drained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drain {
    /// The whole of it.
    pub timeout: Duration,
    /// Handoffs under way.
    pub max_concurrency: u32,
    /// State held for handoffs, in bytes; never less than one largest state, which could not be handed off otherwise.
    pub max_bytes_in_flight: u64,
    /// Failures in a row after which the rest is stopped.
    pub stop_after_failures: u32,
    /// How the state travels.
    pub transfer: Transfer,
}

/// What holds for one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// It is handed off when its pod shuts down.
    pub handoff: bool,
    /// Higher ones go first.
    pub priority: i32,
    /// One attempt at one handoff; never longer than the whole drain.
    pub per_server_timeout: Duration,
    /// One freeze; never longer than the attempt.
    pub freeze_timeout: Duration,
    /// Servers of its type in one pod.
    pub max_of_type_per_pod: Option<u32>,
    /// It is started elsewhere when it could not be handed off.
    pub permanent: bool,
    /// It stays where it is.
    pub cordoned: bool,
    /// The resource's `config` as JSON text; empty if there is none.
    pub config: String,
}

/// A field that cannot be acted on, and what to write. For a condition's message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Invalid {
    /// The field's path.
    pub field: String,
    /// What is wrong with it and what to write.
    pub problem: String,
}

impl Invalid {
    fn new(field: &str, problem: impl Into<String>) -> Self {
        Self { field: field.to_owned(), problem: problem.into() }
    }
}

/// What holds for a pool.
pub fn pool(spec: &DurableServerPoolSpec) -> Result<Pool, Invalid> {
    let sync = spec.sync.clone().unwrap_or_default();
    let placement = spec.placement.clone().unwrap_or_default();
    let recovery = spec.recovery.clone().unwrap_or_default();
    let max_state_bytes = size("spec.sync.maxStateBytes", sync.max_state_bytes.as_ref(), 64 << 20)?;
    Ok(Pool {
        store: bucket(&spec.store.s3)?,
        sync_interval: time("spec.sync.interval", sync.interval.as_ref(), &limits::SYNC_INTERVAL)?
            .unwrap_or(Duration::from_secs(30)),
        max_state_bytes,
        keep_records: number("spec.sync.keepRecords", sync.keep_records, &limits::RECORDS)?.unwrap_or(3),
        host_stop_time: time("spec.hostStopTime", spec.host_stop_time.as_ref(), &limits::HOST_STOP)?
            .unwrap_or(Duration::from_secs(5)),
        drain: drain(&spec.handoff_on_shutdown.clone().unwrap_or_default(), max_state_bytes)?,
        max_servers_per_pod: number(
            "spec.placement.maxServersPerPod",
            placement.max_servers_per_pod,
            &limits::SERVERS,
        )?,
        prefer_newest_revision: placement.prefer_newest_revision.unwrap_or(true),
        rebalance: placement.rebalance.unwrap_or(false),
        sticky: sticky(&placement.sticky)?,
        active_service: spec.active_service.clone(),
        paused: spec.paused.unwrap_or(false),
        ahead: spec.handoff_on_shutdown.as_ref().and_then(|handoff| handoff.ahead).unwrap_or(false),
        lease_duration: time("spec.recovery.leaseDuration", recovery.lease_duration.as_ref(), &limits::LEASE)?
            .unwrap_or(Duration::from_secs(15)),
        max_starts: number("spec.recovery.maxConcurrency", recovery.max_concurrency, &limits::CONCURRENCY)?
            .unwrap_or(50),
    })
}

fn sticky(entries: &[Sticky]) -> Result<Vec<Near>, Invalid> {
    let near = |(n, entry): (usize, &Sticky)| {
        let field = format!("spec.placement.sticky[{n}]");
        if entry.topology_key.is_empty() {
            return Err(Invalid::new(&format!("{field}.topologyKey"), "write a label of nodes"));
        }
        let after = time(&format!("{field}.after"), entry.after.as_ref(), &limits::STICKY)?;
        Ok(Near { label: entry.topology_key.clone(), lasts: after.unwrap_or(Duration::from_secs(30)) })
    };
    entries.iter().enumerate().map(near).collect()
}

fn bucket(s3: &S3) -> Result<Bucket, Invalid> {
    if s3.bucket.is_empty() {
        return Err(Invalid::new("spec.store.s3.bucket", "write the name of a bucket"));
    }
    Ok(Bucket {
        bucket: s3.bucket.clone(),
        prefix: s3.prefix.clone().unwrap_or_default(),
        region: s3.region.clone().unwrap_or_else(|| "us-east-1".into()),
        endpoint: s3.endpoint.clone(),
        force_path_style: s3.force_path_style.unwrap_or(s3.endpoint.is_some()),
        max_requests_per_second: number(
            "spec.store.s3.maxRequestsPerSecond",
            s3.max_requests_per_second,
            &limits::REQUESTS,
        )?
        .unwrap_or(3000),
        ca_bundle: s3.ca_bundle.clone(),
    })
}

fn drain(handoff: &PoolHandoff, max_state_bytes: u64) -> Result<Drain, Invalid> {
    let path = "spec.handoffOnShutdown";
    let bytes = size(&format!("{path}.maxBytesInFlight"), handoff.max_bytes_in_flight.as_ref(), 64 << 20)?;
    Ok(Drain {
        timeout: drain_timeout(handoff)?,
        max_concurrency: number(&format!("{path}.maxConcurrency"), handoff.max_concurrency, &limits::CONCURRENCY)?
            .unwrap_or(50),
        max_bytes_in_flight: bytes.max(max_state_bytes),
        stop_after_failures: number(
            &format!("{path}.stopAfterFailures"),
            handoff.stop_after_failures,
            &limits::FAILURES,
        )?
        .unwrap_or(3),
        transfer: handoff.transfer.unwrap_or_default(),
    })
}

fn drain_timeout(handoff: &PoolHandoff) -> Result<Duration, Invalid> {
    let timeout = time("spec.handoffOnShutdown.timeout", handoff.timeout.as_ref(), &limits::DRAIN)?;
    Ok(timeout.unwrap_or(Duration::from_secs(30)))
}

/// What holds for a server of a pool. `Invalid` names a field of the server, or one of the pool with `pool` in front.
pub fn server(pool: &DurableServerPoolSpec, server: &DurableServerSpec) -> Result<Resolved, Invalid> {
    let of_pool = pool.handoff_on_shutdown.clone().unwrap_or_default();
    let entry = entry_of(pool, &server.type_);
    let of_type = entry.handoff_on_shutdown.unwrap_or_default();
    let own = server.handoff_on_shutdown.clone().unwrap_or_default();
    let types = format!("pool spec.types[{}].handoffOnShutdown", server.type_);
    let step = |field: &str, text: Option<&Text>| time(field, text, &limits::STEP);

    restore_from(server)?;
    let per_server_timeout = match step("spec.handoffOnShutdown.perServerTimeout", own.per_server_timeout.as_ref())? {
        Some(own) => own,
        None => step(&format!("{types}.perServerTimeout"), of_type.per_server_timeout.as_ref())?
            .or(step("pool spec.handoffOnShutdown.perServerTimeout", of_pool.per_server_timeout.as_ref())?)
            .unwrap_or(Duration::from_secs(5)),
    }
    .min(drain_timeout(&of_pool).map_err(of_the_pool)?);
    let freeze_timeout = step(&format!("{types}.freezeTimeout"), of_type.freeze_timeout.as_ref())?
        .or(step("pool spec.handoffOnShutdown.freezeTimeout", of_pool.freeze_timeout.as_ref())?)
        .unwrap_or(Duration::from_secs(1))
        .min(per_server_timeout);
    Ok(Resolved {
        handoff: own.enabled.or(of_type.enabled).or(of_pool.enabled).unwrap_or(false),
        priority: own.priority.or(of_type.priority).unwrap_or(0),
        per_server_timeout,
        freeze_timeout,
        max_of_type_per_pod: number(
            &format!("pool spec.types[{}].maxServersPerPod", server.type_),
            entry.max_servers_per_pod,
            &limits::SERVERS,
        )?,
        permanent: server.permanent.unwrap_or(true),
        cordoned: server.cordoned.unwrap_or(false),
        config: config(server)?,
    })
}

/// A half-written word about the beginning must not end in a fresh start.
fn restore_from(server: &DurableServerSpec) -> Result<(), Invalid> {
    let Some(from) = &server.restore_from else { return Ok(()) };
    let well_formed = |uid: &String| {
        (1..=limits::MAX_UID).contains(&uid.len())
            && uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    match (&from.uid, from.fresh.unwrap_or(false)) {
        (None, true) => Ok(()),
        (Some(uid), false) if well_formed(uid) => Ok(()),
        _ => Err(Invalid::new("spec.restoreFrom", limits::RESTORE_FROM)),
    }
}

fn entry_of(pool: &DurableServerPoolSpec, type_: &str) -> TypeOverride {
    pool.types.iter().find(|entry| entry.name == type_).cloned().unwrap_or_default()
}

fn of_the_pool(mut invalid: Invalid) -> Invalid {
    invalid.field.insert_str(0, "pool ");
    invalid
}

fn config(server: &DurableServerSpec) -> Result<String, Invalid> {
    let Some(config) = &server.config else { return Ok(String::new()) };
    let text = serde_json::to_string(config).map_err(|error| Invalid::new("spec.config", error.to_string()))?;
    if text.len() > MAX_CONFIG_BYTES {
        let problem = format!(
            "it is {} bytes long as JSON: write at most {MAX_CONFIG_BYTES}, and keep what is larger where the host can fetch it",
            text.len()
        );
        return Err(Invalid::new("spec.config", problem));
    }
    Ok(text)
}

fn time(field: &str, text: Option<&Text>, allowed: &Times) -> Result<Option<Duration>, Invalid> {
    let Some(text) = text else { return Ok(None) };
    let time = text.to_std().map_err(|error| Invalid::new(field, error.to_string()))?;
    if allowed.contains(time) { Ok(Some(time)) } else { Err(Invalid::new(field, allowed.sentence())) }
}

fn size(field: &str, text: Option<&ByteSize>, default: u64) -> Result<u64, Invalid> {
    let allowed: &Sizes = &limits::STATE;
    let Some(text) = text else { return Ok(default) };
    let bytes = text.to_bytes().map_err(|error| Invalid::new(field, error.to_string()))?;
    if allowed.contains(bytes) { Ok(bytes) } else { Err(Invalid::new(field, allowed.sentence())) }
}

fn number(field: &str, number: Option<u32>, allowed: &RangeInclusive<u32>) -> Result<Option<u32>, Invalid> {
    match number {
        Some(n) if !allowed.contains(&n) => {
            Err(Invalid::new(field, format!("write a number from {} to {}", allowed.start(), allowed.end())))
        }
        other => Ok(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool_of(yaml: &str) -> DurableServerPoolSpec {
        serde_yaml::from_str(&format!("store: {{s3: {{bucket: b-1}}}}\n{yaml}")).unwrap()
    }

    fn server_of(yaml: &str) -> DurableServerSpec {
        serde_yaml::from_str(&format!("pool: p\ntype: room\n{yaml}")).unwrap()
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let pool = pool(&pool_of("")).unwrap();
        assert_eq!(pool.sync_interval, Duration::from_secs(30));
        assert_eq!((pool.max_state_bytes, pool.keep_records, pool.max_starts), (64 << 20, 3, 50));
        assert_eq!((pool.host_stop_time, pool.lease_duration), (Duration::from_secs(5), Duration::from_secs(15)));
        assert_eq!((pool.max_servers_per_pod, pool.prefer_newest_revision), (None, true));
        assert_eq!((pool.active_service, pool.paused, pool.ahead, pool.rebalance), (None, false, false, false));
        assert_eq!(pool.sticky, []);
        assert_eq!(
            pool.drain,
            Drain {
                timeout: Duration::from_secs(30),
                max_concurrency: 50,
                max_bytes_in_flight: 64 << 20,
                stop_after_failures: 3,
                transfer: Transfer::Direct,
            }
        );
        assert_eq!((pool.store.region.as_str(), pool.store.force_path_style), ("us-east-1", false));

        let server = server(&pool_of(""), &server_of("")).unwrap();
        assert_eq!(
            server,
            Resolved {
                handoff: false,
                priority: 0,
                per_server_timeout: Duration::from_secs(5),
                freeze_timeout: Duration::from_secs(1),
                max_of_type_per_pod: None,
                permanent: true,
                cordoned: false,
                config: String::new(),
            }
        );
    }

    #[test]
    fn the_nearest_word_holds() {
        let pool = pool_of(
            "handoffOnShutdown: {enabled: true, perServerTimeout: 4s, freezeTimeout: 900ms}
types: [{name: room, maxServersPerPod: 7, handoffOnShutdown: {enabled: false, priority: 2, perServerTimeout: 3s}}]",
        );
        let by_type = server(&pool, &server_of("")).unwrap();
        assert_eq!((by_type.handoff, by_type.priority), (false, 2));
        assert_eq!(
            (by_type.per_server_timeout, by_type.freeze_timeout),
            (Duration::from_secs(3), Duration::from_millis(900))
        );
        assert_eq!(by_type.max_of_type_per_pod, Some(7));

        let own = server_of("handoffOnShutdown: {enabled: true, priority: 9, perServerTimeout: 500ms}");
        let own = server(&pool, &own).unwrap();
        assert_eq!((own.handoff, own.priority, own.per_server_timeout), (true, 9, Duration::from_millis(500)));
        assert_eq!(own.freeze_timeout, Duration::from_millis(500), "a freeze ends with its attempt");

        let mut other = server_of("");
        other.type_ = "match".into();
        let by_pool = server(&pool, &other).unwrap();
        assert_eq!((by_pool.handoff, by_pool.per_server_timeout), (true, Duration::from_secs(4)));
        assert_eq!(by_pool.max_of_type_per_pod, None);
    }

    #[test]
    fn a_beginning_is_one_thing_or_the_other() {
        let refused = |yaml: &str| server(&pool_of(""), &server_of(yaml)).err().map(|invalid| invalid.to_string());
        for good in ["restoreFrom: {uid: 0f-1}", "restoreFrom: {uid: a, fresh: false}", "restoreFrom: {fresh: true}"] {
            assert_eq!(refused(good), None, "{good}");
        }
        for bad in ["{}", "{fresh: false}", "{uid: a, fresh: true}", "{uid: ''}", "{uid: a/b}"] {
            let sentence = refused(&format!("restoreFrom: {bad}")).unwrap_or_default();
            assert!(sentence.starts_with("spec.restoreFrom: write either uid"), "{bad}: {sentence}");
        }
    }

    #[test]
    fn an_attempt_ends_with_the_drain() {
        let resolved = server(&pool_of("handoffOnShutdown: {timeout: 2s}"), &server_of("")).unwrap();
        assert_eq!(resolved.per_server_timeout, Duration::from_secs(2));
    }

    #[test]
    fn one_largest_state_always_fits_into_flight() {
        let pool = pool(&pool_of("sync: {maxStateBytes: 128Mi}")).unwrap();
        assert_eq!(pool.drain.max_bytes_in_flight, 128 << 20);
    }

    #[test]
    fn what_slipped_through_is_refused_with_its_field() {
        for (yaml, sentence) in [
            (
                "sync: {interval: often}",
                "spec.sync.interval: `often` is not a duration: write whole numbers with h, m, s or ms, such as 500ms, 30s or 1m30s",
            ),
            ("sync: {interval: 0s}", "spec.sync.interval: write a duration from 1s to 24h"),
            (
                "placement: {sticky: [{topologyKey: zone}, {topologyKey: region, after: 2h}]}",
                "spec.placement.sticky[1].after: write a duration from 0s to 1h",
            ),
            (
                "placement: {sticky: [{topologyKey: ''}]}",
                "spec.placement.sticky[0].topologyKey: write a label of nodes",
            ),
            ("recovery: {leaseDuration: 4s}", "spec.recovery.leaseDuration: write a duration from 5s to 10m"),
            (
                "sync: {maxStateBytes: 64MB}",
                "spec.sync.maxStateBytes: `64MB` is not a size: write a whole number of bytes with an optional unit, such as 512Ki or 64Mi",
            ),
            (
                "handoffOnShutdown: {maxConcurrency: 0}",
                "spec.handoffOnShutdown.maxConcurrency: write a number from 1 to 1000",
            ),
        ] {
            assert_eq!(pool(&pool_of(yaml)).unwrap_err().to_string(), sentence);
        }
        let broken_pool = server(&pool_of("handoffOnShutdown: {timeout: x}"), &server_of("")).unwrap_err();
        assert!(broken_pool.to_string().starts_with("pool spec.handoffOnShutdown.timeout: "), "{broken_pool}");
    }

    #[test]
    fn config_is_bounded() {
        let large = server_of(&format!("config: {{text: {}}}", "x".repeat(MAX_CONFIG_BYTES)));
        assert_eq!(server(&pool_of(""), &large).unwrap_err().field, "spec.config");
        let small = server(&pool_of(""), &server_of("config: {max: 3}")).unwrap();
        assert_eq!(small.config, r#"{"max":3}"#);
    }
}
