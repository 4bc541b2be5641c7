//! Something breaks while clients go on.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::figures;
use crate::load::{Load, Seen};
use crate::process;
use crate::report;
use crate::rooms::{Rooms, room};
use crate::view::{Pod, now};

/// Servers come back by themselves within this, whatever broke, once it is mended.
pub const BACK: Duration = Duration::from_mins(2);
/// So many rooms are looked for in every pod at the end.
const SAMPLE: usize = 20;

/// Who was killed: names of pods, and when (nanoseconds since 1970).
pub type Killed = BTreeMap<String, u64>;

/// Lets something break under load, waits until all servers run again, and checks what no fault may do: nothing
/// acknowledged is lost, and nobody is served twice.
pub async fn under_load<F>(rooms: &Rooms, servers: usize, writes_per_second: u32, breaks: F) -> Result<Seen>
where
    F: AsyncFnOnce(&Load) -> Result<Killed>,
{
    let load = rooms.load(servers, writes_per_second).await?;
    let killed = breaks(&load).await?;
    rooms.all_running(servers, BACK).await?;
    let seen = load.stop().await?;
    report::failures(&seen.failures);
    let traffic = figures::traffic(&seen.answers);
    let lost = figures::lost(&seen.answers);
    println!("{traffic:?} {lost:?}");
    ensure!(lost.acked == 0, "{} acknowledged writes are gone", lost.acked);
    let double = figures::double_served(&seen.answers);
    ensure!(double == 0, "{double} answers of a pod that no longer owned the server");
    let overlaps = rooms.ledger.overlaps(&killed).await;
    ensure!(overlaps.is_empty(), "served by two at once: {:?}", &overlaps[..overlaps.len().min(5)]);
    each_is_served_once(rooms, SAMPLE.min(servers)).await?;
    Ok(seen)
}

/// Asks every pod for each of the first so many rooms: one has it.
pub async fn each_is_served_once(rooms: &Rooms, servers: usize) -> Result<()> {
    for number in 0..servers {
        let serving = rooms.serving(&room(number)).await?;
        ensure!(serving.len() == 1, "{} is served by {serving:?}", room(number));
    }
    Ok(())
}

/// Kills the agent and the host of a pod at once, as its machine would by stopping. When that was.
pub fn kill(rooms: &Rooms, pod: &Pod) -> Result<u64> {
    let (agent, mut all) = rooms.processes(pod)?;
    all.push(agent);
    let before = now();
    process::kill(&all)?;
    Ok(before)
}
