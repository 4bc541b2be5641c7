//! Pods and servers as a picture in text. Pure.

use crds::{DurableServer, Handoff, HandoffPhase, HandoffStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::{
    look::Seen,
    table::{Load, head, loads, state},
};

/// Drains and moves that are shown.
const SHOWN: usize = 6;
/// Lines besides the pods, drains and moves.
const FRAME: usize = 7;
/// The shortest bar that says anything.
const MIN_BAR: usize = 10;

/// The picture, line by line, for a terminal of so many rows and columns.
pub fn lines(seen: &Seen, drains: &[Handoff], (rows, columns): (usize, usize)) -> Vec<String> {
    let mut lines = vec![head(seen), String::new()];
    let drains = under_way(drains);
    let moves = newest_moves(&seen.servers);
    let room = rows.saturating_sub(FRAME + drains.len() + moves.len()).max(1);
    lines.extend(pods(seen, room, columns));
    if !drains.is_empty() {
        lines.extend([String::new(), "drains".to_owned()]);
        lines.extend(drains);
    }
    if !moves.is_empty() {
        lines.extend([String::new(), "last moves".to_owned()]);
        lines.extend(moves);
    }
    lines.into_iter().map(|line| line.chars().take(columns).collect()).collect()
}

fn pods(seen: &Seen, room: usize, columns: usize) -> Vec<String> {
    let loads = loads(&seen.servers);
    let of = |name: &str| loads.get(name).copied().unwrap_or_default();
    let names: Vec<String> = seen.pods.iter().map(ResourceExt::name_any).collect();
    let width = names.iter().map(String::len).max().unwrap_or_default();
    let most = names.iter().map(|name| of(name).servers).max().unwrap_or_default();
    let bars = columns.saturating_sub(width + 22).max(MIN_BAR);
    let row = |(name, pod): (&String, &Pod)| {
        let load: Load = of(name);
        format!("{name:<width$}  {:<11} {:>5}  {}", state(pod), load.servers, bar(load, most, bars))
    };
    let mut lines: Vec<String> = names.iter().zip(&seen.pods).take(room).map(row).collect();
    if names.len() > room {
        lines.push(format!("and {} more pods", names.len() - room));
    }
    lines
}

/// As long as the pod has servers, of the fullest one; what is on its way out is hollow.
fn bar(load: Load, most: usize, width: usize) -> String {
    let cells = |servers: usize| (servers * width).div_ceil(most.max(1));
    let (all, moving) = (cells(load.servers), cells(load.moving));
    "█".repeat(all.saturating_sub(moving)) + &"░".repeat(moving.min(all))
}

/// Drains that are not over.
fn under_way(drains: &[Handoff]) -> Vec<String> {
    let running = |drain: &&Handoff| {
        let phase = drain.status.as_ref().and_then(|status| status.phase);
        !matches!(phase, Some(HandoffPhase::Complete | HandoffPhase::Failed))
    };
    let line = |drain: &Handoff| {
        let status = drain.status.clone().unwrap_or_default();
        let HandoffStatus { total, moved, stopped, gap_p50, gap_max, blocked_by, .. } = status;
        let gaps = gap_p50.zip(gap_max).map(|(half, most)| format!(", gap p50 {half}, max {most}")).unwrap_or_default();
        let why = blocked_by.map(|why| format!(": {why}")).unwrap_or_default();
        format!("  {} {moved} of {total} moved, {stopped} stopped{gaps}{why}", drain.spec.source_pod)
    };
    drains.iter().filter(running).take(SHOWN).map(line).collect()
}

/// The newest moves first.
fn newest_moves(servers: &[DurableServer]) -> Vec<String> {
    let last = |server: &DurableServer| Some((server.name_any(), server.status.as_ref()?.last_handoff.clone()?));
    let mut moves: Vec<_> = servers.iter().filter_map(last).collect();
    moves.sort_by(|(a, one), (b, other)| (&other.time.0, a).cmp(&(&one.time.0, b)));
    let line = |(name, last): (String, crds::LastHandoff)| {
        let to = last.to.unwrap_or_else(|| "the store".into());
        let gap = last.gap.map(|gap| format!(", gap {gap}")).unwrap_or_default();
        let why = last.reason.map(|why| format!(" ({why})")).unwrap_or_default();
        format!("  {name}: {} -> {to}, {:?}{why}{gap}", last.from, last.result)
    };
    moves.into_iter().take(SHOWN).map(line).collect()
}

#[cfg(test)]
mod tests {
    use crds::{HandoffSpec, Trigger};
    use serde_json::json;

    use super::*;
    use crate::table::tests::{seen, server};

    #[test]
    fn bars_are_of_the_fullest_pod_and_what_leaves_is_hollow() {
        assert_eq!(bar(Load { servers: 4, moving: 1 }, 8, 8), "███░");
        assert_eq!(bar(Load { servers: 1, moving: 0 }, 1000, 10), "█", "not nothing");
        assert_eq!(bar(Load::default(), 0, 10), "");
    }

    #[test]
    fn the_picture_has_pods_drains_and_the_newest_moves_and_fits() {
        let mut seen = seen();
        let moved = |time: &str| {
            let last = json!({ "from": "rooms-1", "to": "rooms-2", "gap": "4.2ms", "result": "Moved", "time": time });
            json!({ "phase": "Running", "pod": "rooms-2", "lastHandoff": last })
        };
        seen.servers.push(server("older", moved("2026-01-01T00:00:00Z")));
        seen.servers.push(server("newer", moved("2026-01-01T00:00:01Z")));
        let spec = HandoffSpec { pool: "rooms".into(), source_pod: "rooms-1".into(), trigger: Trigger::Rollout };
        let drain = |phase: &str| {
            let mut drain = Handoff::new("h", spec.clone());
            drain.status = serde_json::from_value(json!({
                "phase": phase, "total": 9, "moved": 4, "gapP50": "3ms", "gapMax": "8ms", "blockedBy": "no pod",
            }))
            .unwrap();
            drain
        };
        let all = lines(&seen, &[drain("Blocked"), drain("Complete")], (24, 80)).join("\n");
        for part in [
            "rooms-1  Draining        2",
            "drains\n  rooms-1 4 of 9 moved, 0 stopped, gap p50 3ms, max 8ms: no pod\n\n",
            "last moves\n  newer: rooms-1 -> rooms-2, Moved, gap 4.2ms\n  older:",
        ] {
            assert!(all.contains(part), "{part} in\n{all}");
        }
        let small = lines(&seen, &[], (10, 30));
        assert!(small.len() <= 10 && small.iter().all(|line| line.chars().count() <= 30), "{small:#?}");
        assert!(small.iter().any(|line| line == "and 1 more pods"), "{small:#?}");
    }
}
