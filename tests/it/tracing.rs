//! What `tracing` hears: the engine's work, by numbers and table ids, and nothing of anybody's data.
#![cfg(feature = "tracing")]

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use strongroom::{MasterKey, Principal, TableOptions};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Event, Metadata, Subscriber};

use crate::world::{World, tiny_table};

/// Keeps everything that is said, as text.
#[derive(Clone, Default)]
struct Listener(Arc<Mutex<Said>>);

#[derive(Default)]
struct Said {
    names: BTreeSet<String>,
    text: String,
}

impl Listener {
    fn hear(&self, metadata: &Metadata<'_>, record: impl FnOnce(&mut Fields)) {
        let mut fields = Fields::default();
        record(&mut fields);
        let mut said = self.0.lock().unwrap();
        let name = fields.message.unwrap_or_else(|| metadata.name().to_owned());
        said.text += &format!("{} {name}{}\n", metadata.target(), fields.text);
        said.names.insert(name);
    }
}

#[derive(Default)]
struct Fields {
    message: Option<String>,
    text: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            "message" => self.message = Some(format!("{value:?}")),
            name => self.text += &format!(" {name}={value:?}"),
        }
    }
}

impl Subscriber for Listener {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        self.hear(span.metadata(), |fields| span.record(fields));
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        self.hear(event.metadata(), |fields| event.record(fields));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[test]
fn the_engines_work_is_heard_and_nothing_secret_is() {
    // A failure means that a table's name, a key or a value stands in a log that everybody in operations reads.
    let listener = Listener::default();
    // While there is one subscriber, `tracing` decides for good whether a place is heard by asking the thread that comes there first, and
    // the threads of other tests have none. Of two, it asks both.
    let _second = Dispatch::new(Listener::default());
    tracing::subscriber::with_default(listener.clone(), || {
        let world = World::new(0x7ace);
        let own = world.kms.create_key(Some("alias/canary-alias"), "").unwrap();
        let store = world.create();
        let options = tiny_table(0).master_key(MasterKey::customer("alias/canary-alias"));
        let table = store.create_table("canary-table", options).unwrap();
        for i in 0..100 {
            table.put(format!("canary-key {i}"), [b"canary-value".as_slice(), &[i; 100]].concat()).unwrap();
        }
        store
            .session(Principal::Named("canary-principal".into()))
            .unwrap()
            .table("canary-table")
            .unwrap()
            .get("x")
            .ok();
        store.compact().unwrap();
        store.sync().unwrap();
        store.rotate_table_key("canary-table").unwrap().wait().unwrap();
        world.kms.disable(&own.arn).unwrap();
        world.sim.clock.advance(Duration::from_secs(600));
        world.sim.scheduler.run_until_idle();
        table.get("canary-key 1").unwrap_err();
        store.close().unwrap();
        drop((table, store));
        world.kms.enable(&own.arn).unwrap();
        let store = world.open().unwrap();
        store.create_table("canary-other", TableOptions::new()).unwrap();
        store.close().unwrap();
    });
    let said = listener.0.lock().unwrap();
    for name in [
        "create",
        "open",
        "recovered",
        "group",
        "sync",
        "flush",
        "flushed",
        "compaction",
        "compacted",
        "rewrite",
        "provider",
        "answered",
        "key unwrapped",
        "old generations erased",
        "table inaccessible",
    ] {
        assert!(said.names.contains(name), "{name} was not heard among {:?}", said.names);
    }
    assert!(!said.text.contains("canary"), "{}", said.text);
    assert!(said.text.lines().all(|line| line.starts_with("strongroom ")), "{}", said.text);
}
