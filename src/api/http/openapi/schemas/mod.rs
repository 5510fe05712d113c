//! Schemas of bodies, parameters and errors. Limits come from [`crate::limits`].

use serde_json::{Value, json};

use super::reference;
use crate::limits;
use crate::model::{FilterReason, PoolSpec, UnschedulableReason, WorkerSurvey};

mod demand;
mod errors;
mod events;

pub(super) use errors::responses;

fn schema(name: &str) -> Value {
    reference("schemas", name)
}

/// Schema of an integer from 0 to `max`.
fn number(max: u64, description: &str) -> Value {
    json!({"type": "integer", "format": "int64", "minimum": 0, "maximum": max, "description": description})
}

fn amount(description: &str) -> Value {
    number(limits::AMOUNT_MAX, description)
}

fn at_least_1(mut number: Value) -> Value {
    number["minimum"] = 1.into();
    number
}

fn ttl_ms(description: &str) -> Value {
    at_least_1(number(limits::TTL_MS_MAX, description))
}

/// Refers to a schema, with a description of its own.
fn described(name: &str, description: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}"), "description": description})
}

/// Schema of a request object, which accepts no other fields.
fn closed_object(description: &str, required: &[&str], properties: Value) -> Value {
    json!({
        "type": "object", "description": description, "required": required, "properties": properties,
        "additionalProperties": false,
    })
}

/// Schema of a response object; later versions may add fields.
fn open_object(description: &str, required: &[&str], properties: Value) -> Value {
    json!({"type": "object", "description": description, "required": required, "properties": properties})
}

fn page(of: &str) -> Value {
    open_object(
        "A page.",
        &["items"],
        json!({
            "items": {"type": "array", "maxItems": limits::PAGE_ITEMS_MAX, "items": schema(of)},
            "next_page_token": {"type": "string", "description": "Start of the next page; missing on the last."},
        }),
    )
}

/// Schema of a batch response: `{name, created}` or an error for each item.
fn outcomes(name: &str, of: &str) -> Value {
    let done = open_object(
        "Done.",
        &[name, "created"],
        json!({
            name: schema(of),
            "created": {"type": "boolean", "description": "False if it was there before this request."},
        }),
    );
    done_or_error(done)
}

/// Schema of a batch response: `done` or an error for each item.
fn done_or_error(done: Value) -> Value {
    open_object(
        "One outcome each, in order.",
        &["items"],
        json!({
            "items": {"type": "array", "maxItems": limits::BATCH_ITEMS_MAX, "items": {"oneOf": [done, schema("Error")]}},
        }),
    )
}

fn heartbeat_fields() -> Value {
    json!({
        "incarnation": amount("Which life of the worker speaks. Default 0."),
        "seq": count("Grows from one heartbeat to the next: what comes later with a lower one is ignored. A registration begins the count anew."),
        "claims": described("HeldClaims", "What it runs; empty: nothing. Missing: nothing is said about that."),
    })
}

#[rustfmt::skip]
fn pool_spec() -> Value {
    let default = PoolSpec::default();
    let mut reserve_ms = number(limits::RESERVE_MS_MAX, "How long a claim may stay unconfirmed, and the most that a claim may ask for.");
    reserve_ms["default"] = default.reserve_ms.into();
    let mut lag_max_ms = number(limits::RESERVE_MS_MAX, "How far the store may lag before claims acknowledged from memory are refused.");
    lag_max_ms["minimum"] = 1.into();
    lag_max_ms["default"] = default.lag_max_ms.into();
    let mut releasing_ms = number(limits::RESERVE_MS_MAX, "How long a release that was begun may take; then the claim ends, and its worker is suspect.");
    let mut heartbeat_ttl_ms = number(limits::RESERVE_MS_MAX, "How long a worker that sends heartbeats may be silent before it is lost.");
    let mut unnamed_ms = number(limits::RESERVE_MS_MAX, "How long the lists of a worker may leave out an active claim that they never named before it ends. Missing: the larger of reserve_ms and twice heartbeat_ttl_ms, at most a day.");
    unnamed_ms["minimum"] = 1.into();
    let mut lost_keep_ms = number(limits::LOST_KEEP_MS_MAX, "How long a lost worker is kept before it is deleted; 0: for ever.");
    lost_keep_ms["default"] = default.lost_keep_ms.into();
    for (field, value) in [(&mut releasing_ms, default.releasing_ms), (&mut heartbeat_ttl_ms, default.heartbeat_ttl_ms)] {
        field["minimum"] = 1.into();
        field["default"] = value.into();
    }
    let ttl_default_ms = ttl_ms("How long a claim that says no ttl_ms may stay active without a renewal; at most ttl_max_ms. Missing: ttl_max_ms, and without that as long as its worker lives.");
    let ttl_max_ms = ttl_ms("The most that a claim or a renewal may ask for as its ttl_ms. Missing: thirty days, or no ttl_ms at all.");
    let mut waiters_max = number(limits::WAITERS_MAX.into(), "Most claims that wait for room in it; the next is refused.");
    waiters_max["default"] = default.waiters_max.into();
    let mut waiters_tenant_max = number(limits::WAITERS_MAX.into(), "Of them most of one tenant.");
    waiters_tenant_max["default"] = default.waiters_tenant_max.into();
    let shards: Vec<u16> = (0..).map(|n| 1 << n).take_while(|&shards| shards <= limits::SHARDS_MAX).collect();
    closed_object("The specification of a pool.", &[], json!({
        "shards": {"type": "integer", "enum": shards, "default": default.shards, "description": "Number of shards. Never changes."},
        "mode": {"enum": ["exclusive", "shared"], "default": default.mode, "description": "How claims use workers: a claim takes a whole one, or as much of one as it asks for. Never changes."},
        "policy": {"enum": ["lifo", "fifo", "random", "best_fit", "spread", "fgd"], "description": "Which worker a claim takes. Exclusive pools: the one that became idle last (lifo, the warmest; the default), first, or any. Shared pools: of those that fit the one with the least left (best_fit, the default), with the most (spread), or of whose idle GPU cards the fewest become useless for what is usually asked (fgd)."},
        "spare_gpu_workers": {"type": "boolean", "default": default.spare_gpu_workers, "description": "A claim that asks for resources and no GPU takes a worker with GPUs only when no other fits."},
        "typical_requests": {"type": "array", "maxItems": limits::TYPICAL_REQUESTS_MAX, "items": schema("TypicalRequest"), "description": "What policy fgd takes for usual. Empty: it learns that from the claims that come."},
        "ack": {"enum": ["durable", "memory"], "default": default.ack, "description": "When answers leave: after the store has the record, or at once."},
        "labels": schema("Labels"),
        "class": described("Name", "Class of the pool, if it has one."),
        "reserve_ms": reserve_ms,
        "ttl_default_ms": ttl_default_ms,
        "ttl_max_ms": ttl_max_ms,
        "lag_max_ms": lag_max_ms,
        "releasing_ms": releasing_ms,
        "heartbeat_ttl_ms": heartbeat_ttl_ms,
        "unnamed_ms": unnamed_ms,
        "lost_keep_ms": lost_keep_ms,
        "waiters_max": waiters_max,
        "waiters_tenant_max": waiters_tenant_max,
        "preemption": {"type": "boolean", "default": default.preemption, "description": "A claim that waits may evict claims with a lower priority that are preemptible."},
    }))
}

#[rustfmt::skip]
fn pool_patch() -> Value {
    let mut patch = pool_spec();
    patch["description"] = "Fields of a specification to change.".into();
    let or_null = |schema: Value| json!({"oneOf": [schema, {"type": "null"}]});
    for (name, field) in patch["properties"].as_object_mut().expect("a specification has fields") {
        let labels = json!({"type": "object", "propertyNames": schema("LabelKey"), "additionalProperties": {"type": ["string", "null"]}, "description": "Labels to set; null takes one away."});
        // Omitted fields keep their value, so there are no defaults.
        field.as_object_mut().expect("a schema").remove("default");
        *field = or_null(if name == "labels" { labels } else { field.take() });
    }
    patch
}

#[rustfmt::skip]
fn worker_fields() -> Value {
    json!({
        "capacity": schema("Capacity"),
        "labels": schema("Labels"),
        "node": described("Name", "The machine it runs on."),
        "incarnation": amount("Grows when the worker starts anew: a higher one ends what the old one held, a lower one is refused. Default 0."),
        "expires_at_ms": amount("Unix time in milliseconds of its own end: it is not offered to a claim that needs it for longer."),
        "claims": described("HeldClaims", "What it runs, as in a heartbeat; nothing said if missing."),
    })
}

#[rustfmt::skip]
fn node_choice() -> Value {
    closed_object("On which machines. An empty list restricts nothing.", &[], json!({
                "required": {"type": "array", "maxItems": limits::CLAIM_NODES_MAX, "items": schema("Name"), "description": "One of these, or nothing."},
                "preferred": {"type": "array", "maxItems": limits::CLAIM_NODES_MAX, "items": schema("Name"), "description": "One of these if possible, else any."},
                "preferred_then_wait": closed_object("One of these nodes if it becomes free in time, else any. Instead of preferred.", &["nodes", "ms"], json!({
                    "nodes": {"type": "array", "minItems": 1, "maxItems": limits::CLAIM_NODES_MAX, "items": schema("Name"), "description": "The nodes."},
                    "ms": at_least_1(number(limits::WAIT_MS_MAX, "For how long only they will do.")),
                })),
            }))
}

#[rustfmt::skip]
fn claim_body() -> Value {
    closed_object("A request for one worker. Exactly one of pool, pools and pool_selector names where.", &["namespace"], json!({
            "namespace": described("Name", "Where; the pools are in it."),
            "pool": described("Name", "The pool that may serve it."),
            "pools": {"type": "array", "maxItems": limits::CLAIM_POOLS_MAX, "items": schema("Name"), "description": "The pools that may serve it, in order: one that has no room falls back to the next."},
            "pool_selector": described("Selector", "All pools of the namespace whose labels pass."),
            "class": described("Name", "Only pools of this class."),
            "resources": described("Resources", "Only workers that have at least this much. In a shared pool the claim holds just that, and it is required."),
            "selector": described("Selector", "Only workers whose labels pass."),
            "node": node_choice(),
            "worker": described("Name", "Only this very worker."),
            "key": described("Name", "Identity together with namespace and tenant. Default: a new UUIDv7."),
            "tenant": described("Name", "Same key, other tenant: another claim. Default: default."),
            "affinity": described("Name", "An idle worker whose last claim had the same affinity is preferred. Default: the key."),
            "reserve_ms": number(limits::RESERVE_MS_MAX, "How long it may stay unconfirmed, counted from when the answer leaves; at most the pool's, which is the default. 0: active at once."),
            "ttl_ms": ttl_ms("How long it may stay active without a renewal; at most the ttl_max_ms of every pool that may serve it. Missing: as the pool says that it is taken from, by default as long as its worker lives."),
            "ack": {"enum": ["durable", "memory"], "description": "May ask for more than the pool promises, never for less."},
            "must_match": {"type": "boolean", "default": false, "description": "If the key is held, it must have asked for the same resources."},
            "labels": described("Labels", "Kept with the claim and shown."),
            "wait_ms": number(limits::WAIT_MS_MAX, "How long to wait if there is no room, or the tenant's quota is used up. Default 0: not at all."),
            "priority": number(limits::PRIORITY_MAX.into(), "Who waits in front of whom, the highest first. Default 0."),
            "preemptible": {"type": "boolean", "default": false, "description": "Whether it may be evicted for a claim with a higher priority, in a pool that allows that."},
        }))
}

fn with_property(mut properties: Value, name: &str, schema: Value) -> Value {
    properties[name] = schema;
    properties
}

pub(super) fn schemas() -> Value {
    let mut schemas = pools_and_workers();
    for more in [claims(), demand::schemas(), events::schemas(), errors::schemas(), miscellaneous()] {
        let Value::Object(more) = more else { unreachable!("both are objects") };
        schemas.as_object_mut().expect("it is one").extend(more);
    }
    schemas
}

/// Schema of worker counts, one for each [`UnschedulableReason`] in its order.
fn unschedulable_counts() -> Value {
    let of = UnschedulableReason::ALL.map(|reason| (reason.as_str().to_owned(), count("Workers.")));
    let names = UnschedulableReason::ALL.map(UnschedulableReason::as_str);
    let about = "Workers that are not offered and hold no claim, each under the first reason that applies, in this order: with the idle and the busy workers they are all.";
    open_object(about, &names, Value::Object(of.into_iter().collect()))
}

/// Schema of worker counts, one for each [`FilterReason`] in its order.
fn ruled_out() -> Value {
    let of = FilterReason::ALL.map(|why| (why.as_str().to_owned(), count("Workers.")));
    let description =
        "Why the others would not, each counted under the first that applies, in this order. None: left out.";
    open_object(description, &[], Value::Object(of.into_iter().collect()))
}

fn count(description: &str) -> Value {
    json!({"type": "integer", "format": "int64", "minimum": 0, "description": description})
}

#[rustfmt::skip]
fn pools_and_workers() -> Value {
    let shard_index = json!({"type": "integer", "minimum": 0, "maximum": limits::SHARDS_MAX - 1, "description": "Index of the shard in the pool."});
    json!({
        "Name": {"type": "string", "minLength": 1, "maxLength": limits::NAME_BYTES_MAX, "pattern": "^[A-Za-z0-9._-]+$", "description": "A name."},
        "LabelKey": {
            "type": "string", "minLength": 1, "maxLength": limits::LABEL_PREFIX_BYTES_MAX + 1 + limits::LABEL_NAME_BYTES_MAX,
            "pattern": "^([A-Za-z0-9._-]{1,255}|[a-z0-9]([a-z0-9-]*[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*/[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)$",
            "description": "A key of Kubernetes, with a prefix (topology.kubernetes.io/zone), or any name.",
        },
        "Labels": {
            "type": "object", "maxProperties": limits::LABELS_MAX, "propertyNames": schema("LabelKey"),
            "additionalProperties": {"type": "string", "maxLength": limits::LABEL_VALUE_BYTES_MAX, "pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f]*$"},
            "description": "Free labels. Values are at most 255 bytes, without control characters.",
        },
        "Capacity": closed_object("What there is, or what is taken. What is left out is 0.", &[], json!({
            "cpu_milli": amount("Thousandths of a core."),
            "memory_bytes": amount("Bytes of memory."),
            "slots": amount("Places, in a unit that the pool's owner chooses."),
            "gpu": closed_object("Cards of one model.", &["model", "count"], json!({
                "model": described("Name", "Model name, as in A10."),
                "count": {"type": "integer", "minimum": 1, "maximum": limits::GPUS_MAX, "description": "Number of cards."},
            })),
        })),
        "Resources": closed_object("What a claim asks for. All of it comes from one worker.", &[], json!({
            "cpu_milli": amount("Thousandths of a core."),
            "memory_bytes": amount("Bytes of memory."),
            "slots": amount("Places, in a unit that the pool's owner chooses."),
            "gpu": schema("GpuAsk"),
        })),
        "GpuAsk": closed_object("Whole cards, or a part of one. Only one of model and models may be given.", &[], json!({
            "model": described("Name", "The model that it must be. Default: any."),
            "models": {"type": "array", "maxItems": limits::CLAIM_MODELS_MAX, "uniqueItems": true, "items": schema("Name"), "description": "Models that will do, the most wanted first."},
            "count": {"type": "integer", "minimum": 1, "maximum": limits::GPUS_MAX, "default": 1, "description": "Number of cards."},
            "milli": {"type": "integer", "minimum": 1, "maximum": limits::GPU_MILLI, "default": limits::GPU_MILLI, "description": "Thousandths of each card. A part of a card only with a count of 1."},
        })),
        "Held": open_object("What a claim holds. What is left out is 0.", &[], json!({
            "cpu_milli": amount("Thousandths of a core."),
            "memory_bytes": amount("Bytes of memory."),
            "slots": amount("Places, in a unit that the pool's owner chooses."),
            "gpu": open_object("Cards of one model.", &["model", "count"], json!({
                "model": described("Name", "Model name, as in A10."),
                "count": {"type": "integer", "minimum": 1, "maximum": limits::GPUS_MAX, "description": "Number of cards."},
                "milli": {"type": "integer", "minimum": 1, "maximum": limits::GPU_MILLI, "description": "Thousandths of each. Only in a shared pool."},
                "cards": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": limits::GPUS_MAX - 1}, "description": "Which cards of the worker, from 0. Only in a shared pool."},
            })),
        })),
        "TypicalRequest": closed_object("A kind of request that a pool usually gets.", &["weight"], json!({
            "cpu_milli": amount("Thousandths of a core."),
            "gpu": schema("GpuAsk"),
            "weight": {"type": "integer", "minimum": 1, "maximum": 1_000_000, "description": "How often, beside the others."},
        })),
        "Sum": open_object("A sum over workers; GPUs are summed by model elsewhere.", &[], json!({
            "cpu_milli": count("Thousandths of a core."), "memory_bytes": count("Bytes of memory."), "slots": count("Places."),
        })),
        "PoolSpec": pool_spec(),
        "PoolPatch": pool_patch(),
        "ShardStatus": open_object("The figures of one shard.", &["shard", "state", "workers", "idle", "busy", "reserved", "seq", "applied_seq", "lag_ms", "queue_depth", "answers_waiting", "restarts"], json!({
            "shard": shard_index,
            "state": {"enum": ["loading", "serving", "refused", "stopped"], "description": "Whether it answers."},
            "reason": {"type": "string", "description": "Why it does not, if it does not."},
            "workers": count("Workers that it owns."), "idle": count("Of them idle."), "busy": count("Of them those that hold claims."), "claims": count("Claims that are held."),
            "reserved": count("Claims not confirmed yet."),
            "seq": count("Last change decided."), "applied_seq": count("Last change that the store has."),
            "lag_ms": count("Age of the oldest change that the store does not have."),
            "queue_depth": count("Requests waiting in its ring."), "answers_waiting": count("Durable answers that wait for the store."),
            "restarts": count("Times it was restarted after a panic."),
            "cordoned": count("Workers that are cordoned."), "draining": count("Workers that are draining."),
            "lost": count("Workers that were silent for too long."), "suspect": count("Workers that nothing has spoken for."),
            "releasing": count("Claims whose worker is being cleaned."),
            "ended": count("Workers whose own end of life has come."), "stopping": count("Workers that run what they were told to stop."),
            "workers_reserved": count("Workers that are kept for claims that wait."),
            "unschedulable": schema("UnschedulableCounts"),
        })),
        "UnschedulableCounts": unschedulable_counts(),
        "Pool": open_object("A pool, with its figures.", &["namespace", "name", "spec", "version", "workers", "claims", "capacity", "free", "gpus"], json!({
            "namespace": schema("Name"), "name": schema("Name"), "spec": schema("PoolSpec"),
            "version": number(limits::FENCE_MAX, "Number of the specification: grows with every change of it, and never comes back."),
            "workers": open_object("Workers by occupancy.", &["total", "idle", "busy"], json!({
                "total": count("All."), "idle": count("Offered."), "busy": count("Held."), "cordoned": count("Cordoned."),
                "draining": count("Draining."), "lost": count("Silent for too long."), "suspect": count("Nothing has spoken for them."),
                "ended": count("Their own end of life has come."), "stopping": count("They run what they were told to stop."),
                "reserved": count("Kept for claims that wait."),
            })),
            "unschedulable": schema("UnschedulableCounts"),
            "claims": open_object("Claims by state.", &["reserved", "active"], json!({"reserved": count("Not confirmed yet."), "active": count("In use."), "releasing": count("Their workers are being cleaned.")})),
            "capacity": schema("Sum"), "free": described("Sum", "What can be claimed: what idle workers have; in a shared pool, what workers that are offered have left."),
            "gpus": {"type": "object", "description": "Cards by model.", "additionalProperties": open_object("Cards of one model.", &["total", "free", "free_milli"], json!({"total": count("All."), "free": count("Those of which nothing is held and that can be claimed."), "free_milli": count("Thousandths of cards that can be claimed.")}))},
            "shards": {"type": "array", "maxItems": limits::SHARDS_MAX, "items": schema("ShardStatus"), "description": "Figures by shard. Missing in lists."},
        })),
        "PoolAnswer": open_object("A pool.", &["pool"], json!({"pool": schema("Pool")})),
        "PoolPage": page("Pool"),
        "WorkerBody": closed_object("A worker as its registrar describes it; its id is in the path.", &[], worker_fields()),
        "WorkerItem": closed_object("A worker as its registrar describes it.", &["id"], with_property(worker_fields(), "id", described("Name", "Unique in its pool."))),
        "WorkersBatch": closed_object("Many workers.", &["workers"], json!({
            "workers": {"type": "array", "maxItems": limits::BATCH_ITEMS_MAX, "items": schema("WorkerItem")},
        })),
        "Worker": open_object("A worker.", &["id", "capacity", "labels", "incarnation", "occupancy", "schedulability", "liveness", "trust", "overcommitted", "version", "shard", "claims"], json!({
            "id": schema("Name"), "capacity": schema("Capacity"), "labels": schema("Labels"), "node": schema("Name"),
            "incarnation": amount("Grows when the worker starts anew."),
            "occupancy": {"enum": ["idle", "busy"], "description": "busy: it holds a claim, or runs what it was told to stop. Pools count one that only does the latter as stopping."},
            "schedulability": {"enum": ["open", "cordoned", "draining"], "description": "Whether it may be offered, as its owner wishes."},
            "liveness": {"enum": ["live", "lost"], "description": "Whether it is heard of."},
            "trust": {"enum": ["trusted", "suspect"], "description": "Whether it can be what it is thought to be."},
            "overcommitted": {"type": "boolean", "description": "It has less than its claims were promised."},
            "expires_at_ms": count("Unix time in milliseconds of its own end, if it said so."),
            "version": count("Sequence number, in its shard, of the last change to it."),
            "shard": shard_index,
            "claims": {"type": "array", "items": schema("Claim"), "description": "What it holds."},
        })),
        "WorkerAnswer": open_object("A worker.", &["worker"], json!({"worker": schema("Worker"), "stop": described("HeldClaims", "What it said that it runs and should not. Missing if there is none.")})),
        "HeldClaim": closed_object("A claim by its name and number. Its namespace is the pool's.", &["key", "fence"], json!({
            "tenant": described("Name", "Default: default."), "key": schema("Name"), "fence": number(limits::FENCE_MAX, "Number of the grant."),
        })),
        "HeldClaims": {"type": "array", "maxItems": limits::REPORTED_CLAIMS_MAX, "items": schema("HeldClaim"), "description": "Claims of one worker."},
        "HeartbeatBody": closed_object("What a worker says of itself.", &[], heartbeat_fields()),
        "HeartbeatItem": closed_object("What a worker says of itself.", &["id"], with_property(heartbeat_fields(), "id", described("Name", "The worker."))),
        "HeartbeatBatch": closed_object("Many heartbeats.", &["workers"], json!({
            "workers": {"type": "array", "maxItems": limits::BATCH_ITEMS_MAX, "items": schema("HeartbeatItem")},
        })),
        "Heard": open_object("What the worker should run, and what it should stop.", &["claims", "stop"], json!({
            "claims": {"type": "array", "items": schema("Claim"), "description": "What it holds."}, "stop": described("HeldClaims", "What it named and should not run."),
            "ignored": {"type": "boolean", "description": "True: it came late, and nothing of it was taken. Else missing."},
            "last_seq": count("Of one that was ignored: the highest seq that was taken. The next has to exceed it, or the worker to be registered again, which begins the count anew."),
        })),
        "HeardOutcomes": done_or_error(schema("Heard")),
        "Cleared": open_object("How many workers.", &["cleared", "suspect"], json!({
            "cleared": count("Trusted since."), "suspect": count("Not yet: claims that the last stop may have lost can still be started."),
        })),
        "NoBody": closed_object("Nothing.", &[], json!({})),
        "WorkerPage": page("Worker"),
        "WorkerOutcomes": outcomes("worker", "Worker"),
    })
}

#[rustfmt::skip]
fn claims() -> Value {
    json!({
        "ClaimBody": claim_body(),
        "Selector": {"type": "string", "maxLength": limits::SELECTOR_BYTES_MAX, "description": "As label selectors of Kubernetes: zone=a, tier!=b, arch in (x,y), disk notin (z), gpu, !spot"},
        "ClaimsBatch": closed_object("Many claims.", &["mode", "items"], json!({
            "mode": {"enum": ["independent", "all_or_nothing"], "description": "Each item for itself; or a gang: all items, under keys that are free, or none, durably whatever the pool promises."},
            "items": {"type": "array", "maxItems": limits::BATCH_ITEMS_MAX, "items": schema("ClaimBody")},
        })),
        "HolderBody": closed_object("Who speaks.", &["fence"], json!({
            "fence": number(limits::FENCE_MAX, "The holder's."),
            "tenant": described("Name", "Default: default."),
        })),
        "RenewBody": closed_object("Who speaks.", &["fence"], json!({
            "fence": number(limits::FENCE_MAX, "The holder's."),
            "tenant": described("Name", "Default: default."),
            "ttl_ms": ttl_ms("From now on it may stay active for that long without a renewal; at most the ttl_max_ms of its pool. Missing: as long as before, at most that; for one that had no ttl_ms the default of its pool."),
        })),
        "ResizeBody": closed_object("Who speaks, and what it needs.", &["fence", "resources"], json!({
            "fence": number(limits::FENCE_MAX, "The holder's."),
            "tenant": described("Name", "Default: default."),
            "resources": described("Resources", "What the claim holds from now on, in all."),
        })),
        "ReleaseAnswer": open_object("What became of a release.", &["released"], json!({
            "released": {"type": "boolean", "description": "False if the key held no claim: it was released already, or there never was one."},
        })),
        "ReleaseBody": closed_object("Who speaks.", &["fence"], json!({
            "fence": number(limits::FENCE_MAX, "The holder's."),
            "tenant": described("Name", "Default: default."),
            "phase": {"enum": ["begin", "finish"], "description": "The work has ended and the worker is being cleaned; it is clean. Missing: all in one call."},
        })),
        "Claim": open_object("A claim.", &["key", "tenant", "fence", "namespace", "pool", "worker", "state", "resources"], json!({
            "key": schema("Name"), "tenant": schema("Name"),
            "fence": number(limits::FENCE_MAX, "Number of this grant: higher than that of every claim before. Sent along with confirm and release; a worker can refuse an older holder by it."),
            "namespace": schema("Name"), "pool": schema("Name"), "worker": schema("Name"),
            "node": described("Name", "The machine that the worker runs on, if known."),
            "state": {"enum": ["reserved", "active", "releasing", "lost"], "description": "Held until its deadline unless confirmed; in use; its worker is being cleaned; its worker is gone."},
            "labels": described("Labels", "What the request gave. Missing if nothing."),
            "priority": number(limits::PRIORITY_MAX.into(), "What the request gave. Missing if 0."),
            "preemptible": {"type": "boolean", "description": "What the request gave. Missing if it is not."},
            "reason": {"enum": ["preempted"], "description": "Why it is being released, if its holder did not say so: a claim with a higher priority evicted it."},
            "resources": described("Held", "What it holds: all that the worker has; in a shared pool, its share."),
            "expires_at_ms": count("Unix time in milliseconds at which it ends if nothing is heard, if it has one."),
            "created_at_ms": count("Unix time in milliseconds at which its worker was given to it. Missing if that is not known: its record is older than this field, or was lost in a crash, and its worker named the claim."),
            "activated_at_ms": count("Unix time in milliseconds at which it became active. Missing until then, and if it is not known."),
        })),
        "Explanation": open_object("What would become of a claim.", &["outcome", "pools"], json!({
            "outcome": {"enum": ["placed", "refused"], "description": "Whether it would be given a worker."},
            "would_take": open_object("The worker that it would be given; among equal ones it may be another the next time. Missing if it would be refused.", &["pool", "worker"], json!({
                "pool": schema("Name"), "worker": schema("Name"), "node": described("Name", "The machine that the worker runs on, if known."),
            })),
            "error": described("ErrorBody", "As the claim would be refused. Missing if it would be placed."),
            "pools": {"type": "array", "maxItems": limits::POOLS_MAX, "items": schema("PoolSurvey"), "description": "The pools that it may use, in the order in which they would be tried."},
        })),
        "PoolSurvey": open_object("What a claim finds in a pool. What is ruled out and fits sum to the workers.", &["pool", "workers", "fits", "ruled_out", "nearest", "most_free"], json!({
            "pool": schema("Name"), "workers": count("All that were looked at."), "fits": count("Those that would take it now."),
            "ruled_out": ruled_out(),
            "too_small": count("Of those that have too little of something: how many would also if they held nothing."),
            "nearest": {"type": "array", "maxItems": WorkerSurvey::NEAREST, "description": "Those that lack nothing but room, the nearest first.", "items": open_object("A worker that would take it if it had more.", &["worker", "short", "text"], json!({
                "worker": schema("Name"), "node": described("Name", "The machine that it runs on, if known."),
                "short": described("Amounts", "What it is short of."), "text": {"type": "string", "description": "For people."},
            }))},
            "most_free": described("Amounts", "Resource by resource, the most that any worker has left which lacks at most room."),
            "silent_shards": count("Shards that could not be asked: their workers are not in the survey."),
        })),
        "Amounts": open_object("Amounts. What is left out is 0.", &[], json!({
            "cpu_milli": count("Thousandths of a core."), "memory_bytes": count("Bytes of memory."), "slots": count("Places."),
            "gpu": count("Whole cards."), "gpu_milli": count("Thousandths of one card."),
        })),
        "ClaimAnswer": open_object("A claim.", &["claim"], json!({"claim": schema("Claim")})),
        "ClaimPage": page("Claim"),
        "ClaimOutcomes": outcomes("claim", "Claim"),
    })
}

#[rustfmt::skip]
fn miscellaneous() -> Value {
    json!({
        "Empty": open_object("Done, and there is nothing to say.", &[], json!({})),
        "Health": open_object("The process lives.", &["status"], json!({"status": {"const": "ok"}})),
        "Readiness": open_object("Whether every shard serves.", &["ready", "reasons"], json!({
            "ready": {"type": "boolean"}, "reasons": {"type": "array", "items": {"type": "string"}},
        })),
        "Shards": open_object("Every shard.", &["keys", "pools"], json!({
            "keys": count("Keys in the directory."),
            "pools": {"type": "object", "additionalProperties": {"type": "array", "items": schema("ShardStatus")}},
        })),
    })
}

#[rustfmt::skip]
pub(super) fn parameters() -> Value {
    let query = |name: &str, schema: Value, description: &str| json!({"name": name, "in": "query", "schema": schema, "description": description});
    let mut force = query("force", json!({"type": "boolean", "default": false}), "Also ends its workers and their claims.");
    // The pool of the example operations has workers.
    force["example"] = true.into();
    json!({
        "page_token": query("page_token", json!({"type": "string"}), "What the page before gave as next_page_token."),
        "limit": query("limit", json!({"type": "integer", "minimum": 1, "maximum": limits::PAGE_ITEMS_MAX, "default": limits::PAGE_ITEMS_DEFAULT}), "Most rows of the page."),
        "version": query("version", json!({"type": "integer", "format": "int64", "minimum": 0, "maximum": limits::FENCE_MAX}), "Only if the pool is still at this version: the one that was read."),
        "force": force,
        "namespace": query("namespace", schema("Name"), "Only of this namespace."),
        "pool": query("pool", schema("Name"), "Only of this pool; needs namespace."),
        "worker": query("worker", schema("Name"), "Only on this worker."),
        "from": query("from", json!({"type": "string"}), "The position of the last event that was seen. Default: what happens from now on is told."),
        "Last-Event-ID": {"name": "Last-Event-ID", "in": "header", "schema": {"type": "string"}, "description": "The same, as browsers say it when they come back; it stands above from."},
        "tenant": query("tenant", schema("Name"), "The tenant of the claim."),
        "state": query("state", json!({"type": "string", "pattern": "^(reserved|active|releasing)(,(reserved|active|releasing))*$"}), "Only in this state, or in one of these, with commas between them. A lost claim is not held, so never listed."),
        "older_than_ms": query("older_than_ms", amount("Only those that were created at least so many milliseconds ago."), "Only those that were created at least so many milliseconds ago. One whose created_at_ms is not known is left out."),
    })
}
