//! What a worker has, and what a claim asks for.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{check_name, some_object};
use crate::limits;
use crate::refusal::Refusal;

/// What a worker has. A resource that was not reported is 0: it takes nothing that needs it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Capacity {
    /// Thousandths of a core.
    #[serde(skip_serializing_if = "is_zero")]
    pub cpu_milli: u64,
    /// Bytes of memory.
    #[serde(skip_serializing_if = "is_zero")]
    pub memory_bytes: u64,
    /// Places, in a unit that the pool's owner chooses.
    #[serde(skip_serializing_if = "is_zero")]
    pub slots: u64,
    /// Cards of one model.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_object")]
    pub gpu: Option<GpuCapacity>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// The cards of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuCapacity {
    /// Model name, e.g. `A10`.
    pub model: Arc<str>,
    /// Number of cards, 1..=64.
    pub count: u32,
}

impl Capacity {
    /// Checks every amount against its limit. `name`: what the caller calls it, e.g. `capacity`.
    ///
    /// # Errors
    /// `Invalid` naming the field.
    pub fn check(&self, name: &str) -> Result<(), Refusal> {
        let amounts = [("cpu_milli", self.cpu_milli), ("memory_bytes", self.memory_bytes), ("slots", self.slots)];
        for (field, amount) in amounts {
            if amount > limits::AMOUNT_MAX {
                let message = format!("must be at most {}", limits::AMOUNT_MAX);
                return Err(Refusal::invalid(format!("{name}.{field}"), message));
            }
        }
        if let Some(gpu) = &self.gpu {
            check_name("gpu.model", &gpu.model).map_err(|refusal| refusal.within(name))?;
            if gpu.count == 0 || gpu.count > limits::GPUS_MAX {
                let message = format!("must be 1..={}", limits::GPUS_MAX);
                return Err(Refusal::invalid(format!("{name}.gpu.count"), message));
            }
        }
        Ok(())
    }

    /// Whether there is at least this much of everything.
    #[must_use]
    pub fn covers(&self, asked: &Self) -> bool {
        let cards = |asked: &GpuCapacity| {
            self.gpu.as_ref().is_some_and(|gpu| gpu.model == asked.model && gpu.count >= asked.count)
        };
        self.cpu_milli >= asked.cpu_milli
            && self.memory_bytes >= asked.memory_bytes
            && self.slots >= asked.slots
            && asked.gpu.as_ref().is_none_or(cards)
    }
}
