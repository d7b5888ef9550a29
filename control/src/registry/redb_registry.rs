//! The registry in one redb file: one writer thread gathers what waits into one commit, so that a thousand
//! heartbeats a second are not a thousand fsyncs. Readers never touch the disk.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use arc_swap::ArcSwap;
use freshet_api::admin::LedgerView;
use freshet_api::operator::Profile;
use freshet_api::{NodeId, SyncKey};
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, WriteTransaction};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use super::ledger::{InterfaceReading, Ledger};
use super::node::{Ban, Invitation, Membership, Node, NodeName, Nodes};
use super::{Joining, NODES_MAX, Pending, Registry, RegistryError};
use crate::precedence::behind_the_rings;

/// The embedded registry.
#[derive(Debug)]
pub struct RedbRegistry {
    shared: Arc<Shared>,
    sync_key: SyncKey,
    /// `None` only while it is dropped.
    commands: Option<mpsc::Sender<Command>>,
    writer: Option<std::thread::JoinHandle<()>>,
}

impl RedbRegistry {
    /// Opens the registry in `file`, or makes it.
    ///
    /// # Errors
    /// [`OpenError`], also when another process has it open.
    pub fn open(file: &Path) -> Result<Self, OpenError> {
        let fail =
            |error: redb::Error| OpenError { file: file.display().to_string(), reason: error.to_string() };
        let database = Database::create(file).map_err(|error| fail(error.into()))?;
        crate::private_file::restrict(file)
            .map_err(|error| OpenError { file: file.display().to_string(), reason: error.to_string() })?;
        let (sync_key, state) = load(&database).map_err(fail)?;
        let shared = Arc::new(Shared {
            nodes: ArcSwap::from(Arc::clone(&state.nodes)),
            ledgers: RwLock::new(state.ledgers.iter().map(|(&id, ledger)| (id, ledger.view())).collect()),
        });
        let (commands, queue) = mpsc::channel(QUEUE_MAX);
        let writer = std::thread::Builder::new()
            .name("registry".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || {
                    behind_the_rings();
                    write_loop(&database, state, &shared, queue);
                }
            })
            .map_err(|error| OpenError { file: file.display().to_string(), reason: error.to_string() })?;
        Ok(Self { shared, sync_key, commands: Some(commands), writer: Some(writer) })
    }

    fn ask<T: Send + 'static>(
        &self,
        make: impl FnOnce(oneshot::Sender<Result<T, RegistryError>>) -> Command,
    ) -> Pending<T> {
        let (reply, answer) = oneshot::channel();
        let command = make(reply);
        let commands = self.commands.clone();
        Box::pin(async move {
            let commands = commands.ok_or(RegistryError::Stopped)?;
            commands.send(command).await.map_err(|_| RegistryError::Stopped)?;
            answer.await.map_err(|_| RegistryError::Stopped)?
        })
    }

    fn ask_node(&self, change: NodeChange) -> Pending<Arc<Node>> {
        self.ask(|reply| Command::Change { change, reply })
    }
}

impl Registry for RedbRegistry {
    fn nodes(&self) -> Arc<Nodes> {
        self.shared.nodes.load_full()
    }

    fn ledger(&self, node: NodeId) -> LedgerView {
        let ledgers = self.shared.ledgers.read().unwrap_or_else(PoisonError::into_inner);
        ledgers.get(&node).copied().unwrap_or_default()
    }

    fn sync_key(&self) -> SyncKey {
        self.sync_key.clone()
    }

    fn invite(&self, name: NodeName, invitation: Invitation) -> Pending<Arc<Node>> {
        self.ask_node(NodeChange::Invite { name, invitation })
    }

    fn join(&self, joining: Joining) -> Pending<Arc<Node>> {
        self.ask_node(NodeChange::Join(joining))
    }

    fn set_draining(&self, node: NodeId, draining: bool) -> Pending<Arc<Node>> {
        self.ask_node(NodeChange::Drain { node, draining })
    }

    fn ban(&self, node: NodeId, ban: Ban) -> Pending<Arc<Node>> {
        self.ask_node(NodeChange::Ban { node, ban: Some(ban) })
    }

    fn pardon(&self, node: NodeId) -> Pending<Arc<Node>> {
        self.ask_node(NodeChange::Ban { node, ban: None })
    }

    fn edit(&self, node: NodeId, name: Option<NodeName>, profile: Profile) -> Pending<Arc<Node>> {
        self.ask_node(NodeChange::Edit { node, name, profile })
    }

    fn remove(&self, node: NodeId) -> Pending<Arc<Node>> {
        self.ask_node(NodeChange::Remove(node))
    }

    fn record(&self, node: NodeId, readings: Vec<InterfaceReading>) -> Pending<()> {
        self.ask(|reply| Command::Record { node, readings, reply })
    }
}

impl Drop for RedbRegistry {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the registry's writer ended by a panic");
        }
    }
}

/// Why the registry could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the registry {file}: {reason}")]
pub struct OpenError {
    /// Which file.
    pub file: String,
    /// In words.
    pub reason: String,
}

/// What readers see.
#[derive(Debug)]
struct Shared {
    nodes: ArcSwap<Nodes>,
    ledgers: RwLock<HashMap<NodeId, LedgerView>>,
}

enum Command {
    Change {
        change: NodeChange,
        reply: oneshot::Sender<Result<Arc<Node>, RegistryError>>,
    },
    Record {
        node: NodeId,
        readings: Vec<InterfaceReading>,
        reply: oneshot::Sender<Result<(), RegistryError>>,
    },
}

enum NodeChange {
    Invite { name: NodeName, invitation: Invitation },
    Join(Joining),
    Drain { node: NodeId, draining: bool },
    Ban { node: NodeId, ban: Option<Ban> },
    Edit { node: NodeId, name: Option<NodeName>, profile: Profile },
    Remove(NodeId),
}

/// Everything, as the writer holds it; equal to what is on disk between two batches.
struct State {
    next: u32,
    nodes: Arc<Nodes>,
    ledgers: BTreeMap<NodeId, Ledger>,
}

/// What a batch has changed and not yet committed.
#[derive(Default)]
struct Dirty {
    nodes: HashSet<NodeId>,
    /// As it was before the batch, for taking back.
    ledgers: HashMap<NodeId, Option<Ledger>>,
}

impl State {
    fn change(&mut self, change: NodeChange, dirty: &mut Dirty) -> Result<Arc<Node>, RegistryError> {
        let node = match change {
            NodeChange::Invite { name, invitation } => self.invited(name, invitation)?,
            NodeChange::Join(joining) => {
                let known = self.nodes.by_invitation(&joining.secret_digest);
                match joined(known.ok_or(RegistryError::UnknownSecret)?, &joining)? {
                    Some(node) => node,
                    None => return known.cloned().ok_or(RegistryError::UnknownSecret),
                }
            }
            NodeChange::Drain { node, draining } => {
                let known = self.nodes.by_id(node).ok_or(RegistryError::UnknownNode { node })?;
                if known.draining == draining {
                    return Ok(Arc::clone(known));
                }
                Node { draining, ..Node::clone(known) }
            }
            NodeChange::Ban { node, ban } => {
                let known = self.nodes.by_id(node).ok_or(RegistryError::UnknownNode { node })?;
                if known.ban.is_some() == ban.is_some() {
                    return Ok(Arc::clone(known));
                }
                Node { ban: ban.map(Arc::new), ..Node::clone(known) }
            }
            NodeChange::Edit { node, name, profile } => {
                let known = self.nodes.by_id(node).ok_or(RegistryError::UnknownNode { node })?;
                let name = name.unwrap_or_else(|| known.name.clone());
                if let Some(other) = self.nodes.by_exact_name(&name).filter(|other| other.id != node) {
                    return Err(RegistryError::NameTaken { name, node: other.id });
                }
                if known.name == name && *known.profile == profile {
                    return Ok(Arc::clone(known));
                }
                Node { name, profile: Arc::new(profile), ..Node::clone(known) }
            }
            NodeChange::Remove(id) => {
                if self.nodes.by_id(id).is_none() {
                    return Err(RegistryError::UnknownNode { node: id });
                }
                dirty.nodes.insert(id);
                let before = self.ledgers.remove(&id);
                dirty.ledgers.entry(id).or_insert(before);
                let removed = Arc::make_mut(&mut self.nodes).take(id);
                return removed.ok_or(RegistryError::UnknownNode { node: id });
            }
        };
        dirty.nodes.insert(node.id);
        let node = Arc::new(node);
        Arc::make_mut(&mut self.nodes).put(Arc::clone(&node));
        Ok(node)
    }

    fn invited(&mut self, name: NodeName, invitation: Invitation) -> Result<Node, RegistryError> {
        if let Some(known) = self.nodes.by_exact_name(&name) {
            if known.membership.is_some() {
                return Err(RegistryError::NameTaken { name, node: known.id });
            }
            return Ok(Node { invitation, ..Node::clone(known) });
        }
        if self.nodes.len() >= NODES_MAX {
            return Err(RegistryError::Full { max: NODES_MAX });
        }
        let id = NodeId(self.next);
        self.next = self.next.checked_add(1).ok_or(RegistryError::Full { max: u32::MAX as usize })?;
        Ok(Node {
            id,
            name,
            added: invitation.made,
            invitation,
            membership: None,
            draining: false,
            ban: None,
            profile: Arc::default(),
        })
    }

    fn record(
        &mut self,
        node: NodeId,
        readings: &[InterfaceReading],
        dirty: &mut Dirty,
    ) -> Result<(), RegistryError> {
        if self.nodes.by_id(node).is_none() {
            return Err(RegistryError::UnknownNode { node });
        }
        let known = self.ledgers.get(&node);
        let mut ledger = known.cloned().unwrap_or_default();
        if ledger.enter(readings) {
            dirty.ledgers.entry(node).or_insert_with(|| known.cloned());
            self.ledgers.insert(node, ledger);
        }
        Ok(())
    }

    fn commit(&self, database: &Database, dirty: &Dirty) -> Result<(), redb::Error> {
        let write = database.begin_write()?;
        write_dirty(&write, self, dirty)?;
        write.commit()?;
        Ok(())
    }

    fn take_back(&mut self, published: Arc<Nodes>, next: u32, dirty: Dirty) {
        self.nodes = published;
        self.next = next;
        for (id, before) in dirty.ledgers {
            match before {
                Some(ledger) => self.ledgers.insert(id, ledger),
                None => self.ledgers.remove(&id),
            };
        }
    }
}

/// The node after it joined, or `None` when this very request made it join before.
fn joined(known: &Node, joining: &Joining) -> Result<Option<Node>, RegistryError> {
    if let Some(membership) = &known.membership {
        let same = membership.credential_digest == joining.credential_digest
            && membership.ticket_key == joining.ticket_key;
        return if same { Ok(None) } else { Err(RegistryError::SecretUsed) };
    }
    if joining.now > known.invitation.expires {
        return Err(RegistryError::SecretExpired { seconds: joining.now - known.invitation.expires });
    }
    let membership = Membership {
        credential_digest: joining.credential_digest,
        ticket_key: joining.ticket_key.clone(),
        joined: joining.now,
    };
    Ok(Some(Node { membership: Some(membership), ..known.clone() }))
}

/// Answers to be given once the batch is on disk.
type Answer = Box<dyn FnOnce(Result<(), RegistryError>)>;

fn write_loop(database: &Database, mut state: State, shared: &Shared, mut queue: mpsc::Receiver<Command>) {
    let mut batch = Vec::new();
    while queue.blocking_recv_many(&mut batch, BATCH_MAX) > 0 {
        let (nodes_before, next_before) = (Arc::clone(&state.nodes), state.next);
        let mut dirty = Dirty::default();
        let mut answers: Vec<Answer> = Vec::with_capacity(batch.len());
        for command in batch.drain(..) {
            answers.push(match command {
                Command::Change { change, reply } => {
                    let outcome = state.change(change, &mut dirty);
                    Box::new(move |stored| drop(reply.send(stored.and(outcome))))
                }
                Command::Record { node, readings, reply } => {
                    let outcome = state.record(node, &readings, &mut dirty);
                    Box::new(move |stored| drop(reply.send(stored.and(outcome))))
                }
            });
        }
        let stored = if dirty.nodes.is_empty() && dirty.ledgers.is_empty() {
            Ok(())
        } else {
            state
                .commit(database, &dirty)
                .map_err(|error| RegistryError::Storage { reason: error.to_string() })
        };
        match &stored {
            Ok(()) => publish(shared, &state, &dirty),
            Err(error) => {
                tracing::error!(%error, "nothing of this batch is acknowledged");
                state.take_back(nodes_before, next_before, dirty);
            }
        }
        answers.into_iter().for_each(|answer| answer(stored.clone()));
    }
}

fn publish(shared: &Shared, state: &State, dirty: &Dirty) {
    if !dirty.nodes.is_empty() {
        shared.nodes.store(Arc::clone(&state.nodes));
    }
    if !dirty.ledgers.is_empty() {
        let mut views = shared.ledgers.write().unwrap_or_else(PoisonError::into_inner);
        for id in dirty.ledgers.keys() {
            match state.ledgers.get(id) {
                Some(ledger) => views.insert(*id, ledger.view()),
                None => views.remove(id),
            };
        }
    }
}

fn write_dirty(write: &WriteTransaction, state: &State, dirty: &Dirty) -> Result<(), redb::Error> {
    if !dirty.nodes.is_empty() {
        let mut nodes = write.open_table(NODES)?;
        for id in &dirty.nodes {
            match state.nodes.by_id(*id) {
                Some(node) => nodes.insert(id.0, encode(node.as_ref())?.as_slice())?,
                None => nodes.remove(id.0)?,
            };
        }
        let mut bans = write.open_table(BANS)?;
        for id in &dirty.nodes {
            match state.nodes.by_id(*id).and_then(|node| node.ban.as_deref()) {
                Some(ban) => bans.insert(id.0, encode(ban)?.as_slice())?,
                None => bans.remove(id.0)?,
            };
        }
        let mut profiles = write.open_table(PROFILES)?;
        for id in &dirty.nodes {
            match state.nodes.by_id(*id).filter(|node| *node.profile != Profile::default()) {
                Some(node) => profiles.insert(id.0, encode(node.profile.as_ref())?.as_slice())?,
                None => profiles.remove(id.0)?,
            };
        }
        write.open_table(FACTS)?.insert(NEXT_NODE, encode(&state.next)?.as_slice())?;
    }
    if !dirty.ledgers.is_empty() {
        let mut ledgers = write.open_table(LEDGERS)?;
        for id in dirty.ledgers.keys() {
            match state.ledgers.get(id) {
                Some(ledger) => ledgers.insert(id.0, encode(ledger)?.as_slice())?,
                None => ledgers.remove(id.0)?,
            };
        }
    }
    Ok(())
}

/// Reads everything; makes the tables and the sync key where they are not there yet.
fn load(database: &Database) -> Result<(SyncKey, State), redb::Error> {
    let write = database.begin_write()?;
    {
        write.open_table(NODES)?;
        let mut ledgers = write.open_table(LEDGERS)?;
        for row in write.open_table(LEDGERS_1)?.iter()? {
            let (id, ledger) = row?;
            // The sums stand first.
            let sums: LedgerView = decode_first(ledger.value())?;
            ledgers.insert(id.value(), encode(&Ledger::of_sums(sums))?.as_slice())?;
        }
        write.delete_table(LEDGERS_1)?;
        write.open_table(BANS)?;
        write.open_table(PROFILES)?;
        let mut facts = write.open_table(FACTS)?;
        if facts.get(SYNC_KEY)?.is_none() {
            let mut key = [0; 32];
            getrandom::fill(&mut key).map_err(|error| redb::Error::Io(std::io::Error::other(error)))?;
            facts.insert(SYNC_KEY, encode(&SyncKey(key))?.as_slice())?;
        }
    }
    write.commit()?;

    let read = database.begin_read()?;
    let facts = read.open_table(FACTS)?;
    let fact = |name| -> Result<Option<Vec<u8>>, redb::Error> {
        Ok(facts.get(name)?.map(|value| value.value().to_vec()))
    };
    let sync_key = decode(&fact(SYNC_KEY)?.unwrap_or_default())?;
    let next = fact(NEXT_NODE)?.map_or(Ok(FIRST_NODE), |bytes| decode(&bytes))?;
    let mut nodes = Nodes::default();
    let (bans, profiles) = (read.open_table(BANS)?, read.open_table(PROFILES)?);
    for row in read.open_table(NODES)?.iter()? {
        let node: Node = decode(row?.1.value())?;
        let ban = bans.get(node.id.0)?.map(|ban| decode(ban.value())).transpose()?;
        let profile = profiles.get(node.id.0)?.map(|profile| decode(profile.value())).transpose()?;
        let profile = Arc::new(profile.unwrap_or_default());
        nodes.put(Arc::new(Node { ban: ban.map(Arc::new), profile, ..node }));
    }
    let mut ledgers = BTreeMap::new();
    for row in read.open_table(LEDGERS)?.iter()? {
        let (id, ledger) = row?;
        ledgers.insert(NodeId(id.value()), decode(ledger.value())?);
    }
    Ok((sync_key, State { next, nodes: Arc::new(nodes), ledgers }))
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>, redb::Error> {
    postcard::to_stdvec(value).map_err(|error| redb::Error::Corrupted(error.to_string()))
}

fn decode_first<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, redb::Error> {
    postcard::take_from_bytes(bytes).map(|(value, _)| value).map_err(not_of_this_version)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, redb::Error> {
    postcard::from_bytes(bytes).map_err(not_of_this_version)
}

fn not_of_this_version(error: postcard::Error) -> redb::Error {
    redb::Error::Corrupted(format!("a record of the registry is not of this version ({error})"))
}

const NODES: TableDefinition<'static, u32, &'static [u8]> = TableDefinition::new("nodes 1");
const LEDGERS: TableDefinition<'static, u32, &'static [u8]> = TableDefinition::new("ledgers 2");
/// Ledgers by boots of the daemon, which counted twice what went on over a restart. Only their sums are taken over.
const LEDGERS_1: TableDefinition<'static, u32, &'static [u8]> = TableDefinition::new("ledgers 1");
const BANS: TableDefinition<'static, u32, &'static [u8]> = TableDefinition::new("bans 1");
const PROFILES: TableDefinition<'static, u32, &'static [u8]> = TableDefinition::new("profiles 1");
const FACTS: TableDefinition<'static, &'static str, &'static [u8]> = TableDefinition::new("facts 1");
const NEXT_NODE: &str = "next node";
const SYNC_KEY: &str = "sync key";
const FIRST_NODE: u32 = 1;
/// Changes that wait for the writer at most; who comes then waits in line.
const QUEUE_MAX: usize = 4_096;
/// Changes in one commit at most.
const BATCH_MAX: usize = 1_024;

#[cfg(test)]
mod tests {
    use freshet_api::TicketKey;

    use super::*;

    fn registry(directory: &Path) -> RedbRegistry {
        RedbRegistry::open(&directory.join("control.redb")).unwrap()
    }

    fn invitation(byte: u8) -> Invitation {
        Invitation { secret_digest: [byte; 32], made: 100, expires: 200 }
    }

    fn joining(secret: u8, credential: u8) -> Joining {
        Joining {
            secret_digest: [secret; 32],
            credential_digest: [credential; 32],
            ticket_key: TicketKey([credential; 32]),
            now: 150,
        }
    }

    fn ban(byte: u8) -> Ban {
        let hash = |byte| freshet_api::ContentHash([byte; 32]);
        let of = freshet_policy::trust::Subject::Object(hash(byte));
        let evidence = freshet_policy::trust::Evidence {
            of,
            offset: 0,
            length: 1,
            expected: hash(3),
            received: hash(4),
        };
        Ban { since: 100, evidence }
    }

    fn reading(epoch: u64, delivered: u64) -> Vec<InterfaceReading> {
        vec![InterfaceReading { name: "eth0".into(), epoch, delivered, synced_in: 7, synced_out: 0 }]
    }

    #[tokio::test]
    async fn sums_of_the_earlier_form_are_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let first = registry(directory.path());
        let node = first.invite("south".parse().unwrap(), invitation(1)).await.unwrap().id;
        drop(first);
        let sums = LedgerView { delivered_bytes: 5, synced_in_bytes: 6, synced_out_bytes: 7 };
        let boots = vec![(9u64, vec![("eth0".to_owned(), 5u64, 6u64, 7u64)])];
        let database = Database::open(directory.path().join("control.redb")).unwrap();
        let write = database.begin_write().unwrap();
        write
            .open_table(LEDGERS_1)
            .unwrap()
            .insert(node.0, encode(&(sums, boots)).unwrap().as_slice())
            .unwrap();
        write.commit().unwrap();
        drop(database);
        for _ in 0..2 {
            let registry = registry(directory.path());
            assert_eq!(registry.ledger(node), sums);
        }
    }

    #[tokio::test]
    async fn what_was_acknowledged_is_there_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let first = registry(directory.path());
        let node = first.invite("south".parse().unwrap(), invitation(1)).await.unwrap();
        assert_eq!(node.id, NodeId(1));
        let joined = first.join(joining(1, 9)).await.unwrap();
        first.record(node.id, reading(5, 1000)).await.unwrap();
        first.set_draining(node.id, true).await.unwrap();
        let caught = ban(1);
        first.ban(node.id, caught.clone()).await.unwrap();
        first.ban(node.id, ban(2)).await.unwrap();
        let key = first.sync_key();
        drop(first);

        let second = registry(directory.path());
        let node = Arc::clone(second.nodes().by_name_or_id("south").unwrap());
        assert_eq!(node.membership, joined.membership);
        assert!(node.draining && second.sync_key() == key);
        assert_eq!(node.ban.as_deref(), Some(&caught), "the first proof stays");
        assert_eq!(second.pardon(node.id).await.unwrap().ban, None);
        second.record(node.id, reading(5, 1000)).await.unwrap();
        assert_eq!(second.ledger(node.id).delivered_bytes, 1000, "a repeated heartbeat doubles nothing");
        second.record(node.id, reading(6, 30)).await.unwrap();
        assert_eq!(second.ledger(node.id).delivered_bytes, 1030);
        assert_eq!(second.ledger(node.id).synced_in_bytes, 14);
    }

    #[tokio::test]
    async fn a_copy_taken_at_any_moment_has_every_acknowledged_byte() {
        // The file as a kill -9 would leave it, without the writer's orderly end.
        let directory = tempfile::tempdir().unwrap();
        let live = registry(directory.path());
        let node = live.invite("south".parse().unwrap(), invitation(1)).await.unwrap().id;
        for round in 1..=20u64 {
            live.record(node, reading(1, round * 100)).await.unwrap();
            let copy = tempfile::tempdir().unwrap();
            std::fs::copy(directory.path().join("control.redb"), copy.path().join("control.redb")).unwrap();
            assert_eq!(registry(copy.path()).ledger(node).delivered_bytes, round * 100);
        }
    }

    #[tokio::test]
    async fn a_join_secret_works_once_and_the_same_request_gets_the_same_answer() {
        let directory = tempfile::tempdir().unwrap();
        let registry = registry(directory.path());
        registry.invite("south".parse().unwrap(), invitation(1)).await.unwrap();
        assert_eq!(registry.join(joining(2, 9)).await, Err(RegistryError::UnknownSecret));
        let late = Joining { now: 205, ..joining(1, 9) };
        assert_eq!(registry.join(late).await, Err(RegistryError::SecretExpired { seconds: 5 }));
        let first = registry.join(joining(1, 9)).await.unwrap();
        let again = Joining { now: 999, ..joining(1, 9) };
        assert_eq!(registry.join(again).await, Ok(first));
        assert_eq!(registry.join(joining(1, 8)).await, Err(RegistryError::SecretUsed));
    }

    #[tokio::test]
    async fn names_are_unique_and_numbers_are_never_given_again() {
        let directory = tempfile::tempdir().unwrap();
        let registry = registry(directory.path());
        let name: NodeName = "south".parse().unwrap();
        assert_eq!(registry.invite(name.clone(), invitation(1)).await.unwrap().id, NodeId(1));
        // Nobody has joined: the same volunteer gets a new join string, and the old one is worth nothing.
        assert_eq!(registry.invite(name.clone(), invitation(2)).await.unwrap().id, NodeId(1));
        assert_eq!(registry.join(joining(1, 9)).await, Err(RegistryError::UnknownSecret));
        registry.join(joining(2, 9)).await.unwrap();
        let taken = RegistryError::NameTaken { name: name.clone(), node: NodeId(1) };
        assert_eq!(registry.invite(name.clone(), invitation(3)).await, Err(taken));
        registry.remove(NodeId(1)).await.unwrap();
        assert_eq!(registry.remove(NodeId(1)).await, Err(RegistryError::UnknownNode { node: NodeId(1) }));
        let gone = RegistryError::UnknownNode { node: NodeId(1) };
        assert_eq!(registry.record(NodeId(1), reading(1, 1)).await, Err(gone));
        assert_eq!(registry.invite(name, invitation(3)).await.unwrap().id, NodeId(2));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn many_at_once_share_commits() {
        let directory = tempfile::tempdir().unwrap();
        let registry = Arc::new(registry(directory.path()));
        let node = registry.invite("south".parse().unwrap(), invitation(1)).await.unwrap().id;
        let tasks: Vec<_> =
            (1..=500u64).map(|boot| tokio::spawn(registry.record(node, reading(boot % 4, boot)))).collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        // Each boot's last counter is its largest: 497 ..= 500.
        assert_eq!(registry.ledger(node).delivered_bytes, 497 + 498 + 499 + 500);
    }

    #[test]
    fn a_second_process_is_told_so() {
        let directory = tempfile::tempdir().unwrap();
        let _first = registry(directory.path());
        let error = RedbRegistry::open(&directory.path().join("control.redb")).unwrap_err();
        assert!(error.to_string().contains("cannot open the registry"), "{error}");
    }

    #[tokio::test]
    async fn a_profile_and_a_new_name_last_and_no_name_is_given_twice() {
        let directory = tempfile::tempdir().unwrap();
        let profile = Profile { contact: "noc@example.org".into(), ..Profile::default() };
        {
            let registry = registry(directory.path());
            let first = registry.invite("first".parse().unwrap(), invitation(1)).await.unwrap();
            registry.invite("second".parse().unwrap(), invitation(2)).await.unwrap();
            let taken = registry.edit(first.id, Some("second".parse().unwrap()), profile.clone()).await;
            assert!(matches!(taken, Err(RegistryError::NameTaken { .. })), "{taken:?}");
            let edited =
                registry.edit(first.id, Some("edge".parse().unwrap()), profile.clone()).await.unwrap();
            assert_eq!((edited.id, edited.name.as_str()), (first.id, "edge"));
            assert!(registry.nodes().by_name_or_id("first").is_none());
        }
        let registry = registry(directory.path());
        let nodes = registry.nodes();
        assert_eq!(*nodes.by_name_or_id("edge").unwrap().profile, profile);
        assert_eq!(*nodes.by_name_or_id("second").unwrap().profile, Profile::default());
    }
}
