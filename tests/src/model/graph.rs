//! The whole graph of a model's states, for the one question that a walk along paths answers wrongly: is there a state
//! from which no way leads back to a server that is served? A loop that never ends does not hide such a state here.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher},
};

use stateright::{Expectation, Model};

use super::{Act, Rules, World};

/// What was found in a graph. The ways are shortest ones.
#[derive(Debug, Default)]
pub struct Report {
    /// Different states.
    pub states: usize,
    /// Steps between them.
    pub steps: usize,
    /// What was to be reached and was not.
    pub never: Vec<&'static str>,
    /// Of the states, those from which no fair way leads to a served server.
    pub stuck: usize,
    /// A way to one of these.
    pub stuck_after: Option<Vec<Act>>,
    /// A property that does not hold, and a way to where it does not.
    pub violated: Option<(&'static str, Vec<Act>)>,
}

#[derive(Clone, Copy)]
struct Node {
    from: u32,
    by: Option<Act>,
}

#[derive(Default)]
struct Graph {
    known: HashMap<u64, u32, BuildHasherDefault<DefaultHasher>>,
    nodes: Vec<Node>,
    served: Vec<bool>,
    /// Fair steps, backwards: (to, from).
    fair: Vec<(u32, u32)>,
    steps: usize,
}

/// Walks the whole graph; stops at the first violation.
#[must_use]
pub fn explore(rules: Rules) -> Report {
    let mut graph = Graph::default();
    let mut next = VecDeque::new();
    for world in rules.init_states() {
        let (id, _) = graph.add(&world, 0, None);
        next.push_back((id, world));
    }
    let (always, mut never): (Vec<_>, Vec<_>) =
        rules.properties().into_iter().partition(|property| matches!(property.expectation, Expectation::Always));
    let mut actions = Vec::new();
    while let Some((id, world)) = next.pop_front() {
        if let Some(property) = always.iter().find(|property| !(property.condition)(&rules, &world)) {
            let violated = Some((property.name, graph.way_to(id)));
            return Report { states: graph.nodes.len(), steps: graph.steps, violated, ..Report::default() };
        }
        never.retain(|property| !(property.condition)(&rules, &world));
        rules.actions(&world, &mut actions);
        for act in actions.drain(..) {
            let Some(after) = rules.next_state(&world, act) else { continue };
            let (to, is_new) = graph.add(&after, id, Some(act));
            graph.steps += 1;
            if act.is_fair() && to != id {
                graph.fair.push((to, id));
            }
            if is_new {
                next.push_back((to, after));
            }
        }
    }
    graph.report(never.iter().map(|property| property.name).collect())
}

impl Graph {
    fn add(&mut self, world: &World, from: u32, by: Option<Act>) -> (u32, bool) {
        let mut hasher = DefaultHasher::new();
        world.hash(&mut hasher);
        let id = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        match self.known.entry(hasher.finish()) {
            Entry::Occupied(known) => (*known.get(), false),
            Entry::Vacant(free) => {
                free.insert(id);
                self.nodes.push(Node { from, by });
                self.served.push(Rules::is_served(world));
                (id, true)
            }
        }
    }

    fn way_to(&self, id: u32) -> Vec<Act> {
        let mut way = Vec::new();
        let mut node = self.nodes[id as usize];
        while let Some(act) = node.by {
            way.push(act);
            node = self.nodes[node.from as usize];
        }
        way.reverse();
        way
    }

    fn report(mut self, never: Vec<&'static str>) -> Report {
        let saved = self.saved();
        let stuck = || (0u32..).zip(&saved).filter(|(_, saved)| !**saved).map(|(id, _)| id);
        Report {
            states: self.nodes.len(),
            steps: self.steps,
            never,
            stuck: stuck().count(),
            stuck_after: stuck().next().map(|id| self.way_to(id)),
            violated: None,
        }
    }

    /// Which states have a fair way to one that is served: found backwards from those.
    fn saved(&mut self) -> Vec<bool> {
        self.fair.sort_unstable();
        let mut saved = self.served.clone();
        let mut next: Vec<u32> = (0u32..).zip(&saved).filter(|(_, served)| **served).map(|(id, _)| id).collect();
        while let Some(to) = next.pop() {
            let first = self.fair.partition_point(|step| step.0 < to);
            for (_, from) in self.fair[first..].iter().take_while(|step| step.0 == to) {
                if !saved[*from as usize] {
                    saved[*from as usize] = true;
                    next.push(*from);
                }
            }
        }
        saved
    }
}
