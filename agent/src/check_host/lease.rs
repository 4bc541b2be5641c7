//! Leases, of a host that says that it knows them: what it does when one is over.

use std::time::{Duration, SystemTime};

use handoff::{Generation, Instant};
use tokio::time::sleep;

use super::{
    report::{Failure, Verdict},
    rules,
    subject::Subject,
};
use crate::{host::Mode, lease::boot_time, servers::unix_ms};

/// Longer than the calls in it take, and not long to wait for.
const SHORT: Duration = Duration::from_millis(1500);

/// Longer than the rest of the checks.
const LONG: Duration = Duration::from_hours(1);

/// One after the other: an earlier generation's end, a lease's end, and a new beginning.
pub async fn lease(subject: &Subject) -> Verdict {
    if !subject.knows_leases {
        return Ok("not among its features: when its agent is gone, it serves on".into());
    }
    // As agents number them, so that one that comes later is later.
    let first = unix_ms(SystemTime::now());
    subject.lease(Generation(first), boot_time() + LONG).await.done(rules::LEASE_ENDS)?;
    let older = subject.active().await?;
    older.request(1).await.served()?;
    let deadline = boot_time() + SHORT;
    subject.lease(Generation(first + 1), deadline).await.done(rules::LEASE_OLDER)?;
    older.request(1).await.not_here_since(rules::LEASE_OLDER)?;
    older.start(1, 2, Mode::Active, None).await.done(rules::LEASE_OLDER)?;
    older.request(1).await.served_as(rules::LEASE_OLDER)?;
    subject.lease(Generation(first), boot_time() + LONG).await.refused(412, rules::LEASE_LATE)?;
    over(subject, &older, Generation(first + 1), deadline).await?;
    subject.lease(Generation(first + 2), boot_time() + LONG).await.done(rules::LEASE_ONCE)?;
    subject.active().await?.request(1).await.served_as(rules::LEASE_ONCE)?;
    Ok(String::new())
}

async fn over(
    subject: &Subject,
    server: &super::subject::Scratch<'_>,
    generation: Generation,
    deadline: Instant,
) -> Result<(), Failure> {
    sleep((deadline + Duration::from_millis(10)) - boot_time()).await;
    server.request(1).await.not_here_since(rules::LEASE_ENDS)?;
    subject.lease(generation, boot_time() + LONG).await.refused(409, rules::LEASE_ONCE)?;
    server.request(1).await.not_here_since(rules::LEASE_ONCE)?;
    subject.scratch().start(1, 1, Mode::Active, None).await.refused(409, rules::LEASE_ONCE)?;
    server.freeze(1, 3, None).await.done(rules::LEASE_STATE)?;
    server.thaw(1, 4).await.refused(409, rules::LEASE_ONCE)?;
    server.stop(1, 5).await.done(rules::LEASE_STATE)
}
