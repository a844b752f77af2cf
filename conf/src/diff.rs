//! What a reload would change.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use crate::effective;
use crate::model::Config;
use crate::node::Node;

/// A difference between two configurations. All of them together say how to get from one to the other.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The place in the document. Items of a list go by their name or address: `routes[api].timeouts.connect`.
    pub path: String,
    /// What it takes to make it.
    pub effect: Effect,
    /// What kind of difference it is.
    pub kind: Kind,
    /// What was there, in one line; `(none)` when nothing was.
    pub from: String,
    /// What is there now, likewise.
    pub to: String,
    steps: Vec<Step>,
    old: Option<Node>,
    new: Option<Node>,
}

/// What kind of difference there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Something is new; in a list it stands at this place.
    Added(Option<Place>),
    /// Something is gone.
    Removed,
    /// A value is another one.
    Changed,
    /// The items of a list that stay have another order, in which the values name them.
    Reordered,
}

/// Where a new item of a list stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Before all others.
    First,
    /// Next after the item of this name or address.
    After(String),
}

/// A step on the way from the whole document to a place in it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Key(String),
    Item(String),
}

/// What it takes to make a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// A worker can make it while it runs.
    Live,
    /// It takes other workers.
    NewWorkers,
    /// It takes another master.
    Restart,
}

/// All differences, in the order of the effective configuration; a mapping's own order means nothing.
pub fn changes(old: &Config, new: &Config) -> Vec<Change> {
    let mut changes = Vec::new();
    compare(&[], Some(&effective::tree(old)), Some(&effective::tree(new)), &mut changes);
    changes
}

impl Change {
    /// The keys, names and addresses that lead to the place, one after another.
    pub fn steps(&self) -> Vec<&str> {
        let names = self.steps.iter().map(|(Step::Key(name) | Step::Item(name))| name.as_str());
        names.collect()
    }

    /// What was there and what is there now, as values; `None` when nothing is.
    pub fn values(&self) -> (Option<impl Serialize>, Option<impl Serialize>) {
        (self.old.as_ref(), self.new.as_ref())
    }

    fn new(steps: &[Step], kind: Kind, old: Option<&Node>, new: Option<&Node>) -> Change {
        let line = |node: Option<&Node>| node.map_or("(none)".to_string(), flow);
        let path = path(steps);
        let (effect, from, to) = (effect(&path), line(old), line(new));
        Change { path, effect, kind, from, to, steps: steps.to_vec(), old: old.cloned(), new: new.cloned() }
    }
}

fn path(steps: &[Step]) -> String {
    let mut path = String::new();
    for step in steps {
        match step {
            Step::Key(key) if path.is_empty() => path.push_str(key),
            Step::Key(key) => path.extend([".", key]),
            Step::Item(name) => path.extend(["[", name, "]"]),
        }
    }
    path
}

/// A value by what identifies it among its siblings.
type Keyed<'a> = (&'a str, &'a Node);

fn compare(steps: &[Step], old: Option<&Node>, new: Option<&Node>, changes: &mut Vec<Change>) {
    match (old, new) {
        _ if old == new => {}
        (Some(Node::Map(old)), Some(Node::Map(new))) => {
            let (old, new) = (entries(old), entries(new));
            compare_kept(steps, Step::Key, &old, &new, changes);
            let known: HashSet<&str> = old.iter().map(|(key, _)| *key).collect();
            for (key, value) in new.iter().filter(|(key, _)| !known.contains(key)) {
                changes.push(Change::new(&below(steps, Step::Key, key), Kind::Added(None), None, Some(value)));
            }
        }
        (Some(Node::List(old_items)), Some(Node::List(new_items))) => match (keyed(old_items), keyed(new_items)) {
            (Some(old), Some(new)) => {
                compare_kept(steps, Step::Item, &old, &new, changes);
                compare_order(steps, &old, &new, changes);
                add_items(steps, &old, &new, changes);
            }
            _ => changes.push(Change::new(steps, Kind::Changed, old, new)),
        },
        (Some(_), None) => changes.push(Change::new(steps, Kind::Removed, old, new)),
        (old, new) => changes.push(Change::new(steps, Kind::Changed, old, new)),
    }
}

fn below(steps: &[Step], step: fn(String) -> Step, key: &str) -> Vec<Step> {
    steps.iter().cloned().chain([step(key.to_owned())]).collect()
}

/// Compares what was there: it may be another value now, or gone.
fn compare_kept(
    steps: &[Step],
    step: fn(String) -> Step,
    old: &[Keyed<'_>],
    new: &[Keyed<'_>],
    changes: &mut Vec<Change>,
) {
    let in_new: HashMap<&str, &Node> = new.iter().copied().collect();
    for (key, value) in old {
        compare(&below(steps, step, key), Some(value), in_new.get(key).copied(), changes);
    }
}

/// Items that stayed may have changed places, which decides among routes for the same requests.
fn compare_order(steps: &[Step], old: &[Keyed<'_>], new: &[Keyed<'_>], changes: &mut Vec<Change>) {
    let kept = |these: &[Keyed<'_>], those: &[Keyed<'_>]| {
        let others: HashSet<&str> = those.iter().map(|(key, _)| *key).collect();
        Node::list(these.iter().map(|(key, _)| key).filter(|key| others.contains(*key)).map(Node::text))
    };
    let (old, new) = (kept(old, new), kept(new, old));
    if old != new {
        changes.push(Change::new(steps, Kind::Reordered, Some(&old), Some(&new)));
    }
}

/// Items that are new, in their order: the one before each has been there, or was added before it.
fn add_items(steps: &[Step], old: &[Keyed<'_>], new: &[Keyed<'_>], changes: &mut Vec<Change>) {
    let known: HashSet<&str> = old.iter().map(|(key, _)| *key).collect();
    let mut place = Place::First;
    for (key, value) in new {
        let next = Place::After((*key).to_owned());
        let place = std::mem::replace(&mut place, next);
        if !known.contains(key) {
            changes.push(Change::new(&below(steps, Step::Item, key), Kind::Added(Some(place)), None, Some(value)));
        }
    }
}

/// The values of a mapping by key.
fn entries(entries: &[(String, Node)]) -> Vec<Keyed<'_>> {
    entries.iter().map(|(key, value)| (key.as_str(), value)).collect()
}

/// The items of a list by name or address; `None` when something has neither.
fn keyed(items: &[Node]) -> Option<Vec<Keyed<'_>>> {
    items.iter().map(|item| Some((identity(item)?, item))).collect()
}

fn identity(item: &Node) -> Option<&str> {
    match item.field("name").or_else(|| item.field("address"))? {
        Node::Text(text) => Some(text),
        _ => None,
    }
}

fn effect(path: &str) -> Effect {
    match path {
        "runtime_dir" | "daemon" | "pid_file" => Effect::Restart,
        "user" | "worker_processes" | "worker_cpu_affinity" | "worker_connections" => Effect::NewWorkers,
        _ if path == "error_log" || path.starts_with("error_log.") => Effect::NewWorkers,
        // How many sockets an address has is known to the workers that have them.
        _ if path.starts_with("listeners[") && path.ends_with("].reuseport") => Effect::NewWorkers,
        _ => Effect::Live,
    }
}

/// A value in one line.
fn flow(node: &Node) -> String {
    match node {
        Node::Null => "null".to_string(),
        Node::Bool(value) => value.to_string(),
        Node::Integer(value) => value.to_string(),
        Node::Float(value) => value.to_string(),
        Node::Text(text) => text.escape_debug().to_string(),
        Node::List(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Node::Map(entries) => {
            let entries: Vec<_> = entries.iter().map(|(key, value)| format!("{key}: {}", flow(value))).collect();
            format!("{{{}}}", entries.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::generated;

    const BASE: &str = "
listeners: [{address: 127.0.0.1:80}]
upstreams: {app: {servers: [10.0.0.1:80, 10.0.0.2:80]}}
routes:
  - {name: a, match: {path: /a}, upstream: app}
  - {name: b, match: {path: /b}, upstream: app}
";

    fn config(text: &str) -> Config {
        crate::parse(text, "test").unwrap().config
    }

    #[test]
    fn nothing_changed() {
        assert_eq!(changes(&config(BASE), &config(BASE)), []);
    }

    #[test]
    fn changes_are_named_by_identity() {
        let table = [
            ("/b}", "/c}", "routes[b].match.path.prefix", Effect::Live, "/b", "/c"),
            (
                "10.0.0.2:80",
                "{address: 10.0.0.2:80, weight: 2}",
                "upstreams.app.servers[10.0.0.2:80].weight",
                Effect::Live,
                "1",
                "2",
            ),
            (
                ", 10.0.0.2:80",
                "",
                "upstreams.app.servers[10.0.0.2:80]",
                Effect::Live,
                "{address: 10.0.0.2:80, weight: 1}",
                "(none)",
            ),
            ("\nlisteners", "\nuser: www\nlisteners", "user", Effect::NewWorkers, "(none)", "www"),
            (
                ":80}]",
                ":80, reuseport: off}]",
                "listeners[127.0.0.1:80].reuseport",
                Effect::NewWorkers,
                "true",
                "false",
            ),
            (
                "\nlisteners",
                "\nerror_log: {level: error}\nlisteners",
                "error_log.level",
                Effect::NewWorkers,
                "info",
                "error",
            ),
            ("\nlisteners", "\nruntime_dir: /x\nlisteners", "runtime_dir", Effect::Restart, "(none)", "/x"),
            ("\nlisteners", "\ndaemon: on\nlisteners", "daemon", Effect::Restart, "false", "true"),
        ];
        for (old, new, path, effect, from, to) in table {
            let found = changes(&config(BASE), &config(&BASE.replacen(old, new, 1)));
            let [found] = found.as_slice() else { panic!("{new}: {found:#?}") };
            assert_eq!((found.path.as_str(), found.effect), (path, effect), "{new}");
            assert_eq!((found.from.as_str(), found.to.as_str()), (from, to), "{new}");
        }
    }

    #[test]
    fn a_new_item_is_told_with_its_place() {
        let route = |name: &str| format!("  - {{name: {name}, match: {{path: /{name}}}, upstream: app}}\n");
        let table = [
            (format!("routes:\n{}", route("n")), Place::First),
            (format!("routes:\n{}{}", route("a"), route("n")), Place::After("a".into())),
        ];
        let base = BASE.split("routes:").next().unwrap();
        for (head, place) in table {
            let rest: String = ["a", "b"].into_iter().filter(|name| !head.contains(&route(name))).map(route).collect();
            let found = changes(&config(BASE), &config(&format!("{base}{head}{rest}")));
            let [found] = found.as_slice() else { panic!("{found:#?}") };
            assert_eq!((found.path.as_str(), &found.kind), ("routes[n]", &Kind::Added(Some(place))));
        }
    }

    #[test]
    fn order_is_a_change() {
        let swapped = BASE.replace("{name: a, match: {path: /a}", "{name: t, match: {path: /t}");
        let swapped = swapped.replace("{name: b, match: {path: /b}", "{name: a, match: {path: /a}");
        let swapped = swapped.replace("{name: t, match: {path: /t}", "{name: b, match: {path: /b}");
        let found = changes(&config(BASE), &config(&swapped));
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].from.as_str(), found[0].to.as_str()), ("[a, b]", "[b, a]"));
    }

    /// Makes one change to a document.
    fn apply(node: &mut Node, steps: &[Step], change: &Change) {
        let Some((step, rest)) = steps.split_first() else {
            match (&change.kind, &change.new, node) {
                (Kind::Changed, Some(new), node) => *node = new.clone(),
                (Kind::Reordered, Some(Node::List(names)), Node::List(items)) => {
                    items.sort_by_key(|item| names.iter().position(|name| Some(name) == identity_node(item)).unwrap());
                }
                other => panic!("{other:?}"),
            }
            return;
        };
        match (step, node) {
            (Step::Key(key), Node::Map(entries)) => {
                let at = entries.iter().position(|(name, _)| name == key);
                match (&change.kind, rest, at) {
                    (Kind::Added(None), [], None) => entries.push((key.clone(), change.new.clone().unwrap())),
                    (Kind::Removed, [], Some(at)) => drop(entries.remove(at)),
                    (_, _, Some(at)) => apply(&mut entries[at].1, rest, change),
                    other => panic!("{other:?}"),
                }
            }
            (Step::Item(name), Node::List(items)) => {
                let of = |items: &[Node], name: &str| items.iter().position(|item| identity(item) == Some(name));
                match (&change.kind, rest, of(items, name)) {
                    (Kind::Added(Some(place)), [], None) => {
                        let at = match place {
                            Place::First => 0,
                            Place::After(other) => of(items, other).unwrap() + 1,
                        };
                        items.insert(at, change.new.clone().unwrap());
                    }
                    (Kind::Removed, [], Some(at)) => drop(items.remove(at)),
                    (_, _, Some(at)) => apply(&mut items[at], rest, change),
                    other => panic!("{other:?}"),
                }
            }
            other => panic!("{other:?}"),
        }
    }

    fn identity_node(item: &Node) -> Option<&Node> {
        item.field("name").or_else(|| item.field("address"))
    }

    /// The same document with its mappings in the order of their keys.
    fn sorted(node: &Node) -> Node {
        match node {
            Node::Map(entries) => {
                let mut entries: Vec<_> = entries.iter().map(|(key, value)| (key.clone(), sorted(value))).collect();
                entries.sort_by(|(a, _), (b, _)| a.cmp(b));
                Node::Map(entries)
            }
            Node::List(items) => Node::list(items.iter().map(sorted)),
            other => other.clone(),
        }
    }

    proptest! {
        #[test]
        fn nothing_differs_from_itself(config in generated::config()) {
            let text = crate::raw::print(&effective::tree(&config));
            let read = crate::parse(&text, "generated").map(|loaded| loaded.config);
            prop_assert_eq!(read.as_ref(), Ok(&config), "{}", text);
            prop_assert_eq!(changes(&config, &config), []);
        }

        #[test]
        fn the_differences_lead_from_one_to_the_other(a in generated::config(), b in generated::config()) {
            let (mut document, target) = (effective::tree(&a), sorted(&effective::tree(&b)));
            let changes = changes(&a, &b);
            prop_assert_eq!(changes.is_empty(), sorted(&document) == target);
            for change in &changes {
                apply(&mut document, &change.steps, change);
            }
            prop_assert_eq!(sorted(&document), target);
        }

        #[test]
        fn the_differences_of_one_setting_are_that_setting(
            a in generated::config(),
            b in generated::config(),
            which in 0..6,
        ) {
            let mut changed = a.clone();
            let section = match which {
                0 => { changed.timeouts = b.timeouts; "timeouts" }
                1 => { changed.listeners = b.listeners; "listeners" }
                2 => { changed.error_log = b.error_log; "error_log" }
                3 => { changed.access_log = b.access_log; "access_log" }
                4 => { changed.watchdog = b.watchdog; "watchdog" }
                _ => { changed.trusted_proxies = b.trusted_proxies; "trusted_proxies" }
            };
            let changes = changes(&a, &changed);
            prop_assert_eq!(changes.is_empty(), changed == a);
            prop_assert!(changes.iter().all(|change| change.steps()[0] == section), "{:?}", changes);
        }
    }
}
