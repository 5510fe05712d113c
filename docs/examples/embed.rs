use std::sync::Arc;

use hotpool::model::{ClaimId, ClaimRequest, PoolName, PoolSpec, WorkerId, WorkerSpec};
use hotpool::persist::store::file::FileStore;
use hotpool::scheduler::{Scheduler, SchedulerSettings};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::temp_dir().join(format!("hotpool-embed-{}", std::process::id()));
    let scheduler = Scheduler::new(Arc::new(FileStore::open(&dir)?), SchedulerSettings::default());
    scheduler.start().await?;

    let pool = PoolName::new("demo", "warm")?;
    scheduler.put_pool(pool.clone(), PoolSpec::default()).await?;
    scheduler.register(&pool, WorkerSpec::with_id(WorkerId::new("worker-1")?)).await?;

    let claim = scheduler.claim(ClaimRequest::new(ClaimId::new("demo", "default", "job-1")?, pool)).await?.claim;
    println!("job-1 runs on {}, fence {}", claim.worker.spec.id, claim.fence);
    scheduler.release(&claim.id, claim.fence).await?;

    scheduler.stop().await;
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
