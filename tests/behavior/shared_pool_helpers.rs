//! Helpers for tests of shared pools: workers by size, claims by resources, and free resources.

use hotpool::model::claim_request::ClaimConstraints;
use hotpool::model::request_error::RequestError;
use hotpool::model::{
    AckLevel, ClaimFilter, ClaimRequest, ClaimSpec, ClaimView, GpuCapacity, GpuRequest, PlacementPolicy, PoolMode,
    PoolSpec, ResourceRequirements, WorkerCapacity, WorkerSpec,
};

use crate::world::{Claimed, World, name, request, spec, worker};

pub fn shared(shards: u16, policy: PlacementPolicy) -> PoolSpec {
    PoolSpec { mode: PoolMode::Shared, policy: Some(policy), ..spec(shards, AckLevel::Durable) }
}

pub fn cpu(cpu_milli: u64) -> ResourceRequirements {
    ResourceRequirements { cpu_milli, ..ResourceRequirements::default() }
}

pub fn gpus(models: &[&str], count: u32, milli: u32) -> ResourceRequirements {
    let models = models.iter().map(|&model| model.into()).collect();
    ResourceRequirements { gpu: Some(GpuRequest { models, count, milli }), ..ResourceRequirements::default() }
}

pub fn sized(id: &str, cpu_milli: u64, gpu: Option<(&str, u32)>) -> WorkerSpec {
    let gpu = gpu.map(|(model, count)| GpuCapacity { model: model.into(), count });
    WorkerSpec { capacity: WorkerCapacity { cpu_milli, gpu, ..WorkerCapacity::default() }, ..worker(id) }
}

pub fn request_for(pool: &str, key: &str, resources: &ResourceRequirements) -> ClaimRequest {
    let spec = ClaimSpec { resources: resources.clone(), ..ClaimSpec::default() };
    let constraints = ClaimConstraints { spec, ..ClaimConstraints::default() };
    ClaimRequest { reserve_ms: Some(0), constraints: Some(Box::new(constraints)), ..request(pool, key) }
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

    pub async fn share(&self, key: &str, resources: &ResourceRequirements) -> Claimed {
        self.s.claim(request_for("p", key, resources)).await
    }

    /// Claims resources. Returns the worker and the GPUs that were granted.
    pub async fn allocate(&self, key: &str, resources: &ResourceRequirements) -> Result<(String, u64), RequestError> {
        self.share(key, resources)
            .await
            .map(|taken| (taken.claim.worker.spec.id.to_string(), taken.claim.gpu_mask.unwrap()))
    }

    /// Cores that can be claimed, and thousandths of GPUs.
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

pub fn held(claim: &ClaimView) -> &ResourceRequirements {
    &claim.spec.as_ref().unwrap().resources
}
