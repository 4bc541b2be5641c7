//! Adoption, of a host that says that its servers go on when its agent is restarted: what it knows, and whose calls it
//! takes.

use std::time::{Duration, SystemTime};

use handoff::{Generation, adopt::Told};

use super::{
    exchange::Came,
    report::{Failure, Verdict},
    rules,
    subject::{Scratch, Subject},
};
use crate::{host::Mode, lease::boot_time, servers::unix_ms};

/// Longer than the rest of the checks.
const LONG: Duration = Duration::from_hours(1);

/// An agent, the one after it, and one that begins anew.
pub async fn adoption(subject: &Subject) -> Verdict {
    if !subject.can_be_adopted {
        return Ok("not among its features: when its agent is restarted, its servers are started again".into());
    }
    let generation = Generation(unix_ms(SystemTime::now()));
    let lease = Told { generation, deadline: boot_time() + LONG };
    subject.lease_of(lease, 50).await.done(rules::ADOPT_ATTEMPT)?;
    let server = subject.scratch();
    server.start(1, 50, Mode::Active, None).await.done(rules::ADOPT_ATTEMPT)?;
    knows(subject, &server, lease).await?;
    subject.lease_of(lease, 100).await.done(rules::ADOPT_ATTEMPT)?;
    server.freeze(1, 99, None).await.refused(412, rules::ADOPT_ATTEMPT)?;
    server.stop(2, 99).await.refused(412, rules::ADOPT_ATTEMPT)?;
    server.request(1).await.served_as(rules::ADOPT_ATTEMPT)?;
    server.freeze(1, 100, None).await.done(rules::ADOPT_ATTEMPT)?;
    server.thaw(1, 101).await.done(rules::ADOPT_ATTEMPT)?;
    let next = Told { generation: Generation(generation.0 + 1), ..lease };
    subject.lease_of(next, 1).await.done(rules::LEASE_OLDER)?;
    knows(subject, &subject.active().await?, next).await?;
    Ok(String::new())
}

/// It was told of this lease, and started the server under it.
async fn knows(subject: &Subject, server: &Scratch<'_>, lease: Told) -> Result<(), Failure> {
    subject.told().await.judge(rules::ADOPT_KNOWN, |told| {
        let same = told.generation == lease.generation && told.deadline.0.as_millis() == lease.deadline.0.as_millis();
        if same { Ok(()) } else { Err((rules::ADOPT_KNOWN, told.shown())) }
    })?;
    subject.listed().await.judge(rules::ADOPT_KNOWN, |all| {
        match all.iter().find(|line| line.uid == *server.uid()).map(|line| line.generation) {
            Some(Some(generation)) if generation == lease.generation => Ok(()),
            Some(other) => Err((rules::ADOPT_KNOWN, format!("generation {:?} of uid {}", other, server.uid()))),
            None => Err((rules::LIST, format!("{} is not in the list", server.uid()))),
        }
    })
}
