//! How each thing is broken. On a cluster of our own the nodes are this machine, so that their processes can be killed.

use std::process::Command;
use std::slice;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::future::join;
use k8s_openapi::api::core::v1::Pod as PodObject;
use kube::api::{Api, DeleteParams};
use serde_json::json;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::{Broken, LEASE, PODS};
use crate::cluster::{OPERATOR, SYSTEM};
use crate::fault::{BACK, Killed};
use crate::process::{self, Process};
use crate::rooms::Rooms;
use crate::view::{Pod, now};
use crate::wait::until;

/// How long a part of the cluster is away.
const AWAY: Duration = Duration::from_mins(1);
/// What a pod may write here, before its kubelet evicts it, is in `prepare`; this is more (bytes).
const TOO_MUCH: usize = 4 << 20;
/// Kubelets count once a minute what pods wrote, and look every 10 s whether that is too much.
const EVICTED: Duration = Duration::from_mins(2);

/// Gives the pods a directory and memory that they may fill.
pub async fn prepare(rooms: &Rooms) -> Result<()> {
    let scratch = json!({ "template": { "spec": {
        "volumes": [{ "name": "scratch", "emptyDir": { "sizeLimit": "1Mi" } }],
        "containers": [{
            "name": "rooms",
            "volumeMounts": [{ "name": "scratch", "mountPath": "/scratch" }],
            "resources": { "limits": { "memory": "128Mi" } },
        }],
    } } });
    rooms.change(scratch).await?;
    rooms.scale(PODS).await
}

/// The pod with the most servers: something must be struck.
fn fullest(rooms: &Rooms) -> Result<Pod> {
    let servers = rooms.view.servers();
    let held = |pod: &Pod| servers.iter().filter(|server| server.pod == pod.name).count();
    rooms.view.pods().into_iter().filter(|pod| pod.ready).max_by_key(held).context("no pod")
}

fn strike(pod: &Pod, processes: &[Process]) -> Result<Broken> {
    let at = now();
    process::kill(processes)?;
    Ok(killed(slice::from_ref(pod), at))
}

/// The hosts of these pods were killed, and reported nothing more.
fn killed(pods: &[Pod], at: u64) -> Broken {
    let pods: Vec<String> = pods.iter().map(|pod| pod.name.clone()).collect();
    Broken { at, killed: pods.iter().map(|pod| (pod.clone(), at)).collect(), pods }
}

/// Kills all that runs in these pods.
fn kill_all<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> Result<()> {
    pods.into_iter().try_for_each(|pod| process::kill(&process::of_pod(&pod.uid)?))
}

/// A fault that stops no server, in any pod.
fn nothing_ended(rooms: &Rooms, at: u64, when: &str) -> Result<Broken> {
    let ended = rooms.ledger.ends_since(at);
    ensure!(ended == 0, "{ended} servers stopped {when}");
    Ok(Broken { at, ..Broken::default() })
}

/// Waits until every server that this took has begun anew.
async fn recovered(rooms: &Rooms, broken: &Broken, limit: Duration) -> Result<()> {
    until("all that was struck is served again", limit, async || {
        Ok(rooms.ledger.recoveries(broken.at, &broken.pods).iter().all(Option::is_some).then_some(()))
    })
    .await
}

pub async fn host_killed(rooms: &Rooms) -> Result<Broken> {
    let pod = fullest(rooms)?;
    let broken = strike(&pod, &rooms.processes(&pod)?.1)?;
    recovered(rooms, &broken, BACK).await?;
    Ok(broken)
}

/// The host has used up its memory, and the kernel kills it.
pub async fn out_of_memory(rooms: &Rooms) -> Result<Broken> {
    let pod = fullest(rooms)?;
    let hosts = rooms.processes(&pod)?.1;
    let host = hosts.first().context("no host")?.clone();
    let at = now();
    spawn_blocking(move || process::exhaust_memory(host.pid)).await??;
    let broken = killed(slice::from_ref(&pod), at);
    until("the kubelet says why the host ended", BACK, async || {
        let pods: Api<PodObject> = Api::namespaced(rooms.cluster.client.clone(), &rooms.namespace);
        let status = pods.get(&pod.name).await?.status.unwrap_or_default();
        let ended = status.container_statuses.unwrap_or_default().into_iter().find_map(|c| c.last_state?.terminated);
        Ok(ended.filter(|ended| ended.reason.as_deref() == Some("OOMKilled")))
    })
    .await?;
    recovered(rooms, &broken, BACK).await?;
    Ok(broken)
}

/// The next agent takes up what the host serves on.
pub async fn agent_killed(rooms: &Rooms) -> Result<Broken> {
    let pod = fullest(rooms)?;
    let agent = rooms.processes(&pod)?.0;
    let before = agent.pid;
    let at = strike(&pod, &[agent])?.at;
    until("its agent runs again", BACK, async || {
        Ok(rooms.processes(&pod).is_ok_and(|(agent, _)| agent.pid != before).then_some(()))
    })
    .await?;
    // What was not taken up would end with the lease that the host was told of.
    sleep(LEASE).await;
    nothing_ended(rooms, at, "though their host lived")
}

pub async fn forced(rooms: &Rooms) -> Result<Broken> {
    let pod = fullest(rooms)?;
    let pods: Api<PodObject> = Api::namespaced(rooms.cluster.client.clone(), &rooms.namespace);
    let at = now();
    pods.delete(&pod.name, &DeleteParams::default().grace_period(0)).await?;
    let broken = Broken { at, pods: vec![pod.name], killed: Killed::new() };
    recovered(rooms, &broken, BACK).await?;
    Ok(broken)
}

/// The pod fills its disk, and the kubelet ends it without its hook.
pub async fn evicted(rooms: &Rooms) -> Result<Broken> {
    let pod = fullest(rooms)?;
    let hosts = rooms.processes(&pod)?.1;
    let host = hosts.first().context("no host")?;
    std::fs::write(format!("/proc/{}/root/scratch/much", host.pid), vec![1; TOO_MUCH])?;
    until("the pod is evicted", EVICTED, async || Ok(rooms.processes(&pod).is_err().then_some(()))).await?;
    let last = rooms.ledger.last_end(&pod.name).unwrap_or_else(now);
    let broken = Broken { at: last.min(now()), pods: vec![pod.name], killed: Killed::new() };
    recovered(rooms, &broken, BACK).await?;
    Ok(broken)
}

/// Nothing gets in or out, and all processes live.
pub async fn cut_off(rooms: &Rooms) -> Result<Broken> {
    let pod = fullest(rooms)?;
    let agent = rooms.processes(&pod)?.0;
    let cut = Cut::make(agent.pid)?;
    let broken = Broken { at: now(), pods: vec![pod.name], killed: Killed::new() };
    recovered(rooms, &broken, LEASE * 4).await?;
    drop(cut);
    Ok(broken)
}

/// A pod without a network, until this is dropped.
struct Cut(u32);

impl Cut {
    fn make(pid: u32) -> Result<Self> {
        let cut = Self(pid);
        for chain in ["INPUT", "OUTPUT"] {
            cut.rule("-I", chain)?;
        }
        Ok(cut)
    }

    fn rule(&self, verb: &str, chain: &str) -> Result<()> {
        let pid = self.0.to_string();
        let status = Command::new("nsenter")
            .args(["-t", &pid, "-n", "iptables", verb, chain, "-j", "DROP"])
            .status()
            .context("nsenter")?;
        ensure!(status.success(), "iptables in the network of process {pid}: {status}");
        Ok(())
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        for chain in ["INPUT", "OUTPUT"] {
            if let Err(error) = self.rule("-D", chain) {
                eprintln!("the pod stays cut off: {error:#}");
            }
        }
    }
}

/// The agent sleeps for longer than its lease, with its host or without, and wakes when others serve what it had.
pub async fn paused(rooms: &Rooms, with_host: bool) -> Result<Broken> {
    let pod = fullest(rooms)?;
    let (agent, mut hosts) = rooms.processes(&pod)?;
    hosts.retain(|_| with_host);
    hosts.push(agent);
    let (at, pods) = (now(), vec![pod.name.clone()]);
    let paused = process::pause(hosts)?;
    // A host that sleeps too says only when it wakes that it served nothing: whether it did, the client knows.
    let killed = if with_host { [(pod.name, at)].into() } else { Killed::new() };
    let broken = Broken { at, pods, killed };
    recovered(rooms, &broken, LEASE * 4).await?;
    drop(paused);
    rooms.ready_pods(usize::try_from(PODS)?).await?;
    Ok(broken)
}

/// The nodes, and their kubelets' processes.
const NODES: [(&str, &str); 2] = [("node0", "kubelet0"), ("node1", "kubelet1")];

/// A kubelet and all pods of its node are gone without a word, and come back when all is over: of the node with the
/// operator's leader, or of the other.
pub async fn node_lost(rooms: &Rooms, with_leader: bool) -> Result<Broken> {
    let leader = rooms.cluster.leader().await?;
    let (node, kubelet) =
        NODES.into_iter().find(|(node, _)| (leader.node == *node) == with_leader).context("no such node")?;
    let lost: Vec<Pod> = rooms.view.pods().into_iter().filter(|pod| pod.node == node).collect();
    ensure!(!lost.is_empty(), "no pod on {node}");
    let operators = rooms.cluster.pods(SYSTEM, node).await?;
    let kubelet = rooms.cluster.stop_process(kubelet).await?;
    let at = now();
    kill_all(lost.iter().chain(&operators))?;
    let broken = killed(&lost, at);
    recovered(rooms, &broken, LEASE * 4).await?;
    drop(kubelet);
    rooms.ready_pods(usize::try_from(PODS)?).await?;
    Ok(broken)
}

/// Both replicas at once.
pub async fn operator_killed(rooms: &Rooms) -> Result<Broken> {
    let pod = fullest(rooms)?;
    let (at, before) = (now(), rooms.ledger.len());
    rooms.delete_pod(&pod.name).await?;
    until("the first servers have moved", BACK, async || Ok((rooms.ledger.len() > before).then_some(()))).await?;
    kill_all(&rooms.cluster.pods(SYSTEM, "").await?)?;
    until("the drained pod is gone", BACK, async || {
        Ok((!rooms.view.pods().iter().any(|other| other.uid == pod.uid)).then_some(()))
    })
    .await?;
    rooms.cluster.scale(SYSTEM, OPERATOR, 2).await?;
    Ok(Broken { at, pods: vec![pod.name], killed: Killed::new() })
}

/// Both replicas are replaced, one after the other, as by an upgrade.
pub async fn operator_rolled(rooms: &Rooms) -> Result<Broken> {
    let at = now();
    rooms.cluster.restart(SYSTEM, OPERATOR).await?;
    nothing_ended(rooms, at, "while the operator was replaced")
}

pub async fn api_server_stopped(rooms: &Rooms) -> Result<Broken> {
    away(rooms, "apiserver").await
}

pub async fn store_stopped(rooms: &Rooms) -> Result<Broken> {
    away(rooms, "s3").await
}

/// No server may stop for it, in any pod.
async fn away(rooms: &Rooms, process: &'static str) -> Result<Broken> {
    let stopped = rooms.cluster.stop_process(process).await?;
    let at = now();
    sleep(AWAY).await;
    drop(stopped);
    rooms.cluster.answers().await?;
    nothing_ended(rooms, at, &format!("while {process} was away"))
}

/// All pods are to be replaced, and nothing can be written: a new pod is not ready then, so the old ones stay.
pub async fn rollout_without_store(rooms: &Rooms) -> Result<Broken> {
    let pods = rooms.view.pods().into_iter().map(|pod| pod.name).collect();
    let stopped = rooms.cluster.stop_process("s3").await?;
    let begun = now();
    let (rolled, served_on) = join(rooms.restart(), async {
        sleep(AWAY).await;
        let ended = rooms.ledger.ends_since(begun);
        drop(stopped);
        ensure!(ended == 0, "{ended} servers stopped though they had a pod to be in");
        Ok(now())
    })
    .await;
    rolled?;
    let broken = Broken { at: served_on?, pods, killed: Killed::new() };
    recovered(rooms, &broken, BACK).await?;
    Ok(broken)
}

/// Hosts, agents and operators are killed, the store and the API server too.
pub async fn everything(rooms: &Rooms) -> Result<Broken> {
    let pods = rooms.view.pods();
    let operators = rooms.cluster.pods(SYSTEM, "").await?;
    let stopped = (rooms.cluster.stop_process("s3").await?, rooms.cluster.stop_process("apiserver").await?);
    let at = now();
    kill_all(pods.iter().chain(&operators))?;
    drop(stopped);
    rooms.cluster.answers().await?;
    let broken = killed(&pods, at);
    recovered(rooms, &broken, BACK).await?;
    Ok(broken)
}
