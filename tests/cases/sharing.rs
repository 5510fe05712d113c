//! What tests of shared pools say: workers by size, claims by what they ask for, and what is left.

use hotpool::model::claim_request::ClaimAsk;
use hotpool::model::rejection::Refusal;
use hotpool::model::{
    Ack, Capacity, ClaimFilter, ClaimRequest, ClaimSpec, ClaimView, GpuAsk, GpuCapacity, Mode, Policy, PoolSpec,
    Resources, WorkerSpec,
};

use crate::world::{Claimed, World, name, request, spec, worker};

pub fn shared(shards: u16, policy: Policy) -> PoolSpec {
    PoolSpec { mode: Mode::Shared, policy: Some(policy), ..spec(shards, Ack::Durable) }
}

pub fn cpu(cpu_milli: u64) -> Resources {
    Resources { cpu_milli, ..Resources::default() }
}

pub fn cards(models: &[&str], count: u32, milli: u32) -> Resources {
    let models = models.iter().map(|&model| model.into()).collect();
    Resources { gpu: Some(GpuAsk { models, count, milli }), ..Resources::default() }
}

pub fn sized(id: &str, cpu_milli: u64, gpu: Option<(&str, u32)>) -> WorkerSpec {
    let gpu = gpu.map(|(model, count)| GpuCapacity { model: model.into(), count });
    WorkerSpec { capacity: Capacity { cpu_milli, gpu, ..Capacity::default() }, ..worker(id) }
}

pub fn asking(pool: &str, key: &str, resources: &Resources) -> ClaimRequest {
    let spec = ClaimSpec { resources: resources.clone(), ..ClaimSpec::default() };
    let ask = ClaimAsk { spec, ..ClaimAsk::default() };
    ClaimRequest { reserve_ms: Some(0), ask: Some(Box::new(ask)), ..request(pool, key) }
}

impl World {
    pub async fn shared(&self, spec: PoolSpec, workers: Vec<WorkerSpec>) {
        self.s.put_pool(name("p"), spec).await.unwrap();
        self.enlist(workers).await;
    }

    pub async fn enlist(&self, workers: Vec<WorkerSpec>) {
        let workers = workers.into_iter().map(Into::into).collect();
        for registered in self.s.register_batch(&name("p"), workers).await.unwrap() {
            registered.unwrap();
        }
    }

    pub async fn share(&self, key: &str, resources: &Resources) -> Claimed {
        self.s.claim(asking("p", key, resources)).await
    }

    /// Which worker gave it a share, and which cards.
    pub async fn place(&self, key: &str, resources: &Resources) -> Result<(String, u64), Refusal> {
        self.share(key, resources)
            .await
            .map(|taken| (taken.claim.worker.spec.id.to_string(), taken.claim.cards.unwrap()))
    }

    /// Cores that can be claimed, and thousandths of cards.
    pub async fn left(&self) -> (u64, u64) {
        let status = self.s.get_pool(&name("p")).await.unwrap();
        (status.free.cpu_milli, status.gpus.values().map(|sum| sum.free_milli).sum())
    }

    pub async fn all_held(&self) -> Vec<ClaimView> {
        let page = self.s.list_claims(&ClaimFilter::default(), None, 1_000).await.unwrap();
        assert!(page.next.is_none());
        page.items
    }
}

pub fn held(claim: &ClaimView) -> &Resources {
    &claim.spec.as_ref().unwrap().resources
}
