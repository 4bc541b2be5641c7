//! What would happen now if: the pods are changed as asked, on a copy of what is known of them, and the functions that
//! decide the real moves say the rest.

use std::collections::{BTreeSet, HashMap};

use crds::{
    plan::{Foretold, Sent},
    settings,
};
use handoff::{
    PodUid, ServerUid,
    moves::{self, Leaving, Move, Resident},
    placement::{Board, PodFacts},
};

use super::{Pool, World, attend::no_pod, cluster::revision, moves::facts};
use crate::{
    foretell::{Account, Question, To, Unanswerable, What},
    model::Key,
    plan::{Candidate, Standing},
};

/// The revision of pods that are to come.
const NEXT: &str = "next";
const STAY: &str = "stay where they are";
const STOP: &str = "are stopped when their pod ends, and started elsewhere from the store";
const PAUSED: &str = "the pool is paused: set its spec.paused to false";

/// Pods as they would be, and those that servers would leave.
struct Scene<'a> {
    key: &'a Key,
    pool: &'a Pool,
    settings: &'a settings::Pool,
    pods: Vec<Candidate>,
    left: BTreeSet<PodUid>,
    account: Account,
}

impl World {
    /// Answers a question. Changes nothing.
    pub fn foretell(&self, question: &Question) -> Result<Foretold, Unanswerable> {
        let key = &question.pool;
        if !self.initialised_all() {
            return Err(Unanswerable::Starting);
        }
        let pool = self.pools.get(key).filter(|pool| pool.object.is_some());
        let Some((pool, settings)) = pool.and_then(|pool| Some((pool, pool.settings.as_ref()?))) else {
            return Err(Unanswerable::NoPool(key.clone()));
        };
        if !pool.settled {
            return Err(Unanswerable::Starting);
        }
        let pods = self.cluster.candidates(&pool.pods, Some(settings));
        let scene = Scene { key, pool, settings, pods, left: BTreeSet::new(), account: Account::default() };
        let told = match &question.what {
            What::Drain(pod) => self.foretell_drain(scene, pod),
            What::Node(node) => self.foretell_node(scene, node),
            What::Rollout => self.foretell_rollout(scene),
            What::Move(servers, to) => self.foretell_moves(scene, servers, to),
        }?;
        Ok(Foretold { question: question.to_string(), ..told })
    }

    fn foretell_drain(&self, mut scene: Scene<'_>, name: &str) -> Result<Foretold, Unanswerable> {
        let no_pod = || Unanswerable::NoPod { pool: scene.key.clone(), pod: name.to_owned() };
        let pod = scene.pods.iter_mut().find(|pod| pod.name == name).ok_or_else(no_pod)?;
        pod.facts.cordoned = true;
        pod.facts.leaving = Some(Leaving::Asked);
        scene.left.insert(pod.facts.pod.clone());
        let told = Foretold { when: "at once".into(), otherwise: STAY.into(), ..Foretold::default() };
        Ok(self.leave(scene, told, true))
    }

    fn foretell_node(&self, mut scene: Scene<'_>, node: &str) -> Result<Foretold, Unanswerable> {
        let on_node = |uid: &PodUid| self.cluster.pods.get(uid).is_some_and(|entry| entry.pod.node == node);
        for pod in scene.pods.iter_mut().filter(|pod| on_node(&pod.facts.pod)) {
            pod.facts.schedulable = false;
            let asked = pod.facts.leaving.filter(|why| *why == Leaving::Asked);
            pod.facts.leaving = asked.or(Some(Leaving::NodeCordoned));
            scene.left.insert(pod.facts.pod.clone());
        }
        if scene.left.is_empty() {
            return Err(Unanswerable::NoNode { pool: scene.key.clone(), node: node.to_owned() });
        }
        let ahead = scene.settings.ahead;
        let (when, otherwise) = if ahead {
            (
                "as soon as the node is cordoned",
                "stay until their pod is evicted, are then stopped, and started elsewhere",
            )
        } else {
            ("when its pods are evicted: handoffOnShutdown.ahead is false, so a cordon alone moves nothing", STOP)
        };
        let told = Foretold { when: when.into(), otherwise: otherwise.into(), ..Foretold::default() };
        Ok(self.leave(scene, told, ahead))
    }

    fn foretell_rollout(&self, mut scene: Scene<'_>) -> Result<Foretold, Unanswerable> {
        let made = |uid: &PodUid| {
            let pod = self.cluster.pods.get(uid).map(|entry| &entry.pod);
            pod.is_some_and(|pod| pod.replica_set.is_some() || pod.stateful_set.is_some())
        };
        let ahead = scene.settings.ahead;
        for pod in scene.pods.iter_mut().filter(|pod| made(&pod.facts.pod)) {
            pod.facts.newest = false;
            // A pod that is told to end takes whatever pod there is, without regard to those that follow.
            pod.facts.leaving = Some(if ahead { Leaving::Replaced } else { Leaving::Asked });
            scene.left.insert(pod.facts.pod.clone());
        }
        let old = scene.pods.iter().filter(|pod| scene.left.contains(&pod.facts.pod));
        let pattern = old.clone().find(|pod| !pod.types.is_empty()).or_else(|| old.clone().next());
        let pattern = pattern.ok_or_else(|| Unanswerable::NoWorkload(scene.key.clone()))?;
        let coming: Vec<Candidate> = (0..self.wanted(scene.key)).map(|n| successor(pattern, n)).collect();
        scene.pods.extend(coming);
        let when = if ahead { "as soon as pods of the new revision are ready" } else { "when each pod is told to end" };
        let told = Foretold { when: when.into(), otherwise: STOP.into(), ..Foretold::default() };
        Ok(self.leave(scene, told, false))
    }

    /// All servers leave the pods that are left: by moves that the operator orders, or else in the drains of their agents.
    fn leave(&self, mut scene: Scene<'_>, told: Foretold, ordered: bool) -> Foretold {
        let pods: Vec<PodUid> = scene.left.iter().cloned().collect();
        let residents = self.may_go(&mut scene, pods.iter().flat_map(|pod| self.owned_by(pod)));
        // What the agent of a pod that ends is told of: pods that it is not told of get nothing.
        let targets: BTreeSet<PodUid> =
            Standing::of(&scene.pods).targets.into_iter().map(|target| PodUid(target.pod_uid)).collect();
        let mut pods = facts(&scene.pods);
        pods.retain(|pod| targets.contains(&pod.pod) || scene.left.contains(&pod.pod));
        let mut board = self.board(scene.key, pods);
        let share = moves::share(scene.pool.servers.len(), self.wanted(scene.key));
        let paused = ordered && scene.settings.paused;
        let go = match () {
            () if paused => Vec::new(),
            () if ordered => self.order(&mut board, residents.clone(), share, scene.key),
            () => moves::next(&mut board, residents.clone(), share, usize::MAX),
        };
        self.tell_of(scene, told, &board, &residents, &go, paused)
    }

    /// All moves that the operator would order, first to last.
    fn order(&self, board: &mut Board, residents: Vec<Resident>, share: u32, key: &Key) -> Vec<Move> {
        let (mut wishes, mut others) = (Vec::new(), Vec::new());
        for resident in residents {
            let wish = self.servers.get(&resident.server).and_then(|server| server.wish.as_ref());
            let to = wish.and_then(|wish| self.pod_named(key, wish)).and_then(|to| board.pod(to));
            match to.filter(|to| to.pod != resident.pod && to.can_be_sent(&resident.need).is_ok()) {
                Some(to) => wishes.push((resident, to.pod.clone())),
                None => others.push(resident),
            }
        }
        let mut go = moves::asked(board, wishes, usize::MAX);
        go.extend(moves::next(board, others, share, usize::MAX));
        go
    }

    fn foretell_moves(&self, mut scene: Scene<'_>, names: &[String], to: &To) -> Result<Foretold, Unanswerable> {
        let mut servers = Vec::new();
        for name in names.iter().collect::<BTreeSet<_>>() {
            let uid = self.names.get(&Key::new(scene.key.namespace.clone(), name.clone()));
            match uid.filter(|uid| scene.pool.servers.contains(*uid)) {
                Some(uid) => servers.push(uid.clone()),
                None => scene.account.stays(name, format!("pool {} has no such server", scene.key)),
            }
        }
        let mut residents = self.may_go(&mut scene, servers);
        let mut board = self.board(scene.key, facts(&scene.pods));
        let paused = scene.settings.paused;
        let go = match to {
            To::Best if paused => Vec::new(),
            To::Best => moves::best(&mut board, residents.clone()),
            To::Pod(pod) => {
                let no_pod = || Unanswerable::NoPod { pool: scene.key.clone(), pod: pod.clone() };
                let to = self.pod_named(scene.key, pod).ok_or_else(no_pod)?;
                residents = self.without_those_there(&mut scene, residents, to);
                let wishes = residents.iter().map(|resident| (resident.clone(), to.clone())).collect();
                let go = if paused { Vec::new() } else { moves::asked(&mut board, wishes, usize::MAX) };
                residents =
                    if paused { residents } else { self.without_those_refused(&mut scene, &board, residents, to, &go) };
                go
            }
        };
        let names: HashMap<&PodUid, &String> = scene.pods.iter().map(|pod| (&pod.facts.pod, &pod.name)).collect();
        let sent = |next: &Move| {
            let name = self.servers.get(&next.server)?.id.name.clone();
            Some(Sent { name, to: (*names.get(&next.to)?).clone() })
        };
        let servers = go.iter().filter_map(sent).collect();
        let told = Foretold { when: "at once".into(), otherwise: STAY.into(), servers, ..Foretold::default() };
        Ok(self.tell_of(scene, told, &board, &residents, &go, paused))
    }

    /// Those of these servers that may be moved, in the order in which moves take them; the others are accounted for.
    fn may_go(&self, scene: &mut Scene<'_>, servers: impl IntoIterator<Item = ServerUid>) -> Vec<Resident> {
        let mut residents = Vec::new();
        for uid in servers {
            match self.movable(&uid) {
                Ok(resident) => residents.push(resident),
                Err(why) => scene.account.stays(self.name(&uid), why.to_string()),
            }
        }
        residents.sort_unstable_by(|a, b| a.server.cmp(&b.server));
        residents
    }

    fn without_those_there(&self, scene: &mut Scene<'_>, residents: Vec<Resident>, to: &PodUid) -> Vec<Resident> {
        let (there, others): (Vec<_>, Vec<_>) = residents.into_iter().partition(|resident| resident.pod == *to);
        for resident in there {
            scene.account.stays(self.name(&resident.server), "it is there already".into());
        }
        others
    }

    fn without_those_refused(
        &self,
        scene: &mut Scene<'_>,
        board: &Board,
        residents: Vec<Resident>,
        to: &PodUid,
        go: &[Move],
    ) -> Vec<Resident> {
        let going: BTreeSet<&ServerUid> = go.iter().map(|next| &next.server).collect();
        let (go, refused): (Vec<_>, Vec<_>) = residents.into_iter().partition(|one| going.contains(&one.server));
        for resident in refused {
            if let Some(Err(why)) = board.pod(to).map(|pod| pod.can_be_sent(&resident.need)) {
                let why =
                    format!("pod {} {why}: wait, or name another pod", self.cluster.name_of(to).unwrap_or_default());
                scene.account.stays(self.name(&resident.server), why);
            }
        }
        go
    }

    fn name(&self, uid: &ServerUid) -> &str {
        self.servers.get(uid).map(|server| server.id.name.as_str()).unwrap_or_default()
    }

    /// Counts what goes, and finds out why the rest does not.
    fn tell_of(
        &self,
        mut scene: Scene<'_>,
        told: Foretold,
        board: &Board,
        residents: &[Resident],
        go: &[Move],
        paused: bool,
    ) -> Foretold {
        let pods: HashMap<&PodUid, &Candidate> = scene.pods.iter().map(|pod| (&pod.facts.pod, pod)).collect();
        let place = |uid: &PodUid| {
            let name = pods.get(uid).map(|pod| pod.name.clone()).filter(|name| !name.is_empty());
            let of = self.cluster.pods.get(uid).map(|entry| revision(&entry.pod));
            (name, of.unwrap_or_else(|| NEXT.to_owned()))
        };
        let gone: BTreeSet<&ServerUid> = go.iter().map(|next| &next.server).collect();
        for next in go {
            let (from, of) = place(&next.from);
            scene.account.goes((from.unwrap_or_default(), of), place(&next.to));
        }
        for resident in residents.iter().filter(|resident| !gone.contains(&resident.server)) {
            let Some(server) = self.servers.get(&resident.server) else { continue };
            let why = if paused { PAUSED.to_owned() } else { no_pod(server, board.pods(), &resident.need).message };
            scene.account.stays(&server.id.name, why);
        }
        Foretold { moves: scene.account.moves(), stays: scene.account.reasons(), ..told }
    }
}

/// A pod like this one, of the revision that is to come.
fn successor(pattern: &Candidate, n: usize) -> Candidate {
    Candidate {
        facts: PodFacts {
            pod: PodUid(format!("{NEXT}-{n}")),
            ready: true,
            running: true,
            schedulable: true,
            session: true,
            newest: true,
            capacity: pattern.facts.capacity,
            types: pattern.facts.types.clone(),
            ..PodFacts::default()
        },
        alive: true,
        types: pattern.types.clone(),
        ..Candidate::default()
    }
}
