//! Random steps, with few workers and requests.

use std::sync::Arc;

use hotpool::engine::{GpuFilter, NodeSet, PlacementConstraints};
use hotpool::model::label_selector::LabelSelector;
use hotpool::model::{
    ClaimId, ClaimSpec, GpuCapacity, GpuRequest, Labels, ResourceRequirements, WorkerCapacity, WorkerId, WorkerSpec,
};
use proptest::prelude::*;

#[derive(Debug, Clone)]
pub enum Step {
    Register {
        worker: u8,
        kind: u8,
        lifetime: Lifetime,
    },
    Delete {
        worker: u8,
    },
    Cordon {
        worker: u8,
        on: bool,
    },
    Claim {
        key: u8,
        request: u8,
        filter: u8,
        needs_ms: u64,
    },
    Release {
        key: u8,
    },
    Resize {
        key: u8,
        request: u8,
    },
    Heartbeat {
        worker: u8,
        reported: u8,
    },
    Batch {
        first: u8,
        requests: Vec<u8>,
    },
    Gang {
        first: u8,
        requests: Vec<u8>,
    },
    /// Commits or aborts the oldest open gang.
    Decide {
        commit: bool,
    },
    Restart,
}

/// End of a worker's life, from its registration on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Lifetime {
    Never,
    Near,
    Far,
}

impl Lifetime {
    pub const fn in_ms(self) -> Option<u64> {
        match self {
            Self::Never => None,
            Self::Near => Some(3_500),
            Self::Far => Some(50_000),
        }
    }
}

fn lifetime() -> impl Strategy<Value = Lifetime> {
    prop_oneof![1 => Just(Lifetime::Never), 2 => Just(Lifetime::Near), 1 => Just(Lifetime::Far)]
}

/// Beyond no end, beyond near ones, beyond all.
fn needs_ms() -> impl Strategy<Value = u64> {
    prop_oneof![3 => Just(0_u64), 1 => Just(3_400), 2 => Just(3_500), 1 => Just(20_000), 1 => Just(100_000)]
}

pub fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..6u8, 0..10u8, lifetime()).prop_map(|(worker, kind, lifetime)| Step::Register { worker, kind, lifetime }),
        1 => (0..6u8).prop_map(|worker| Step::Delete { worker }),
        1 => (0..6u8, any::<bool>()).prop_map(|(worker, on)| Step::Cordon { worker, on }),
        12 => (0..24u8, 0..14u8, 0..8u8, needs_ms())
            .prop_map(|(key, request, filter, needs_ms)| Step::Claim { key, request, filter, needs_ms }),
        6 => (0..24u8).prop_map(|key| Step::Release { key }),
        3 => (0..24u8, 0..14u8).prop_map(|(key, request)| Step::Resize { key, request }),
        1 => (0..6u8, any::<u8>()).prop_map(|(worker, reported)| Step::Heartbeat { worker, reported }),
        1 => (0..24u8, prop::collection::vec(0..14u8, 1..12)).prop_map(|(first, requests)| Step::Batch { first, requests }),
        1 => (0..24u8, prop::collection::vec(0..14u8, 1..6)).prop_map(|(first, requests)| Step::Gang { first, requests }),
        1 => any::<bool>().prop_map(|commit| Step::Decide { commit }),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..60)
}

pub fn worker(id: u8, kind: u8) -> WorkerSpec {
    let (cpu_milli, memory_bytes, slots, gpu) = [
        (4_000, 8, 0, None),
        (8_000, 16, 4, None),
        (16_000, 0, 0, None),
        (0, 32, 8, None),
        (8_000, 16, 0, Some(("T4", 1))),
        (16_000, 64, 0, Some(("T4", 4))),
        (32_000, 64, 0, Some(("A10", 2))),
        (32_000, 64, 2, Some(("A10", 8))),
        (2_000, 1, 0, Some(("T4", 2))),
        (0, 0, 0, None),
    ][kind as usize];
    let gpu = gpu.map(|(model, count): (&str, u32)| GpuCapacity { model: model.into(), count });
    WorkerSpec {
        capacity: WorkerCapacity { cpu_milli, memory_bytes, slots, gpu },
        labels: Labels::from([("zone".into(), ["a", "b"][usize::from(kind % 2)].into())]),
        node: (!id.is_multiple_of(3)).then(|| format!("n{}", id % 3).into()),
        ..WorkerSpec::with_id(WorkerId::new(&format!("w{id}")).unwrap())
    }
}

pub fn request(request: u8) -> ResourceRequirements {
    let (cpu_milli, memory_bytes, slots, gpu) = [
        (1_000, 0, 0, None),
        (500, 1, 0, None),
        (4_000, 4, 0, None),
        (0, 8, 0, None),
        (0, 0, 1, None),
        (16_000, 0, 0, None),
        (1_000, 0, 0, Some((&[][..], 1, 300))),
        (500, 1, 0, Some((&["T4"][..], 1, 500))),
        (1_000, 0, 0, Some((&["A10", "T4"][..], 1, 1_000))),
        (1_000, 0, 0, Some((&["A10"][..], 2, 1_000))),
        (0, 0, 0, Some((&[][..], 4, 1_000))),
        (0, 0, 0, Some((&["none"][..], 1, 100))),
        (100, 0, 0, Some((&[][..], 1, 700))),
        (0, 0, 2, Some((&["A10"][..], 1, 1))),
    ][request as usize];
    let gpu = gpu.map(|(models, count, milli): (&[&str], u32, u32)| GpuRequest {
        models: models.iter().map(|&model| model.into()).collect(),
        count,
        milli,
    });
    ResourceRequirements { cpu_milli, memory_bytes, slots, gpu }
}

pub fn constraints(resources: &ResourceRequirements, filter: u8) -> PlacementConstraints {
    let spec = ClaimSpec { resources: resources.clone(), ..ClaimSpec::default() };
    let mut constraints = PlacementConstraints { spec: Some(Arc::new(spec)), ..PlacementConstraints::default() };
    match filter {
        4 => constraints.selector = Some(Arc::new(LabelSelector::parse("zone=a").unwrap())),
        5 => constraints.nodes = NodeSet::new(["n1".into()]),
        6 => constraints.worker = Some(WorkerId::new("w1").unwrap()),
        7 => constraints.gpus = GpuFilter::NoGpus,
        _ => {}
    }
    constraints
}

pub fn id(key: u8) -> ClaimId {
    ClaimId::new("ns", "default", &format!("k{key:02}")).unwrap()
}
