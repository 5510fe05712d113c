//! Capacity of workers, and resources that claims request.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{check_name, present, some_object};
use crate::limits;
use crate::model::ResourceVector;
use crate::model::request_error::RequestError;

/// Capacity of a worker. A resource that was not reported is 0, so no claim that needs it fits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerCapacity {
    /// Thousandths of cores in all.
    #[serde(skip_serializing_if = "is_zero")]
    pub cpu_milli: u64,
    /// Bytes of memory in all.
    #[serde(skip_serializing_if = "is_zero")]
    pub memory_bytes: u64,
    /// Slots, in a unit that the pool's owner chooses.
    #[serde(skip_serializing_if = "is_zero")]
    pub slots: u64,
    /// GPUs, all of one model.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_object")]
    pub gpu: Option<GpuCapacity>,
}

/// Whether a field is 0 and is therefore omitted.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
pub(crate) fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// GPUs of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuCapacity {
    /// Name of the model, e.g. `A10`.
    pub model: Arc<str>,
    /// Number of GPUs, 1 to 64.
    pub count: u32,
}

impl WorkerCapacity {
    /// Checks every amount against its limit. `name`: name of the field in the request, e.g. `capacity`.
    ///
    /// # Errors
    /// `Invalid` naming the field.
    pub fn check(&self, name: &str) -> Result<(), RequestError> {
        let amounts = [("cpu_milli", self.cpu_milli), ("memory_bytes", self.memory_bytes), ("slots", self.slots)];
        for (field, amount) in amounts {
            if amount > limits::AMOUNT_MAX {
                let message = format!("must be at most {}", limits::AMOUNT_MAX);
                return Err(RequestError::invalid(format!("{name}.{field}"), message));
            }
        }
        if let Some(gpu) = &self.gpu {
            check_name("gpu.model", &gpu.model).map_err(|error| error.with_field_prefix(name))?;
            if gpu.count == 0 || gpu.count > limits::GPUS_MAX {
                let message = format!("must be 1 to {}", limits::GPUS_MAX);
                return Err(RequestError::invalid(format!("{name}.gpu.count"), message));
            }
        }
        Ok(())
    }

    /// Whether no amount is below that of `required`.
    #[must_use]
    pub fn covers(&self, required: &Self) -> bool {
        let has_gpus = |required: &GpuCapacity| {
            self.gpu.as_ref().is_some_and(|gpu| gpu.model == required.model && gpu.count >= required.count)
        };
        ResourceVector::from(required).fits_in(self.into()) && required.gpu.as_ref().is_none_or(has_gpus)
    }
}

/// Resources that a claim requests, all from one worker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ResourceRequirements {
    /// Requested thousandths of cores.
    #[serde(skip_serializing_if = "is_zero")]
    pub cpu_milli: u64,
    /// Requested bytes of memory.
    #[serde(skip_serializing_if = "is_zero")]
    pub memory_bytes: u64,
    /// Requested slots of the worker.
    #[serde(skip_serializing_if = "is_zero")]
    pub slots: u64,
    /// Requested GPUs, if any.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_object")]
    pub gpu: Option<GpuRequest>,
}

/// GPUs that a claim requests: whole ones, or a fraction of one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "GpuRequestBody")]
pub struct GpuRequest {
    /// Acceptable models, the preferred first: at most [`limits::CLAIM_MODELS_MAX`]; empty: any.
    pub models: Vec<Arc<str>>,
    /// Number of GPUs, 1 to 64.
    pub count: u32,
    /// Thousandths of each GPU, 1 to 1000; 1000 if `count` is above 1.
    pub milli: u32,
}

/// GPU request in its JSON form.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GpuRequestBody {
    #[serde(default, deserialize_with = "present")]
    model: Option<Arc<str>>,
    #[serde(default, deserialize_with = "present")]
    models: Option<Vec<Arc<str>>>,
    #[serde(default, deserialize_with = "present")]
    count: Option<u32>,
    #[serde(default, deserialize_with = "present")]
    milli: Option<u32>,
}

impl TryFrom<GpuRequestBody> for GpuRequest {
    type Error = &'static str;

    fn try_from(body: GpuRequestBody) -> Result<Self, Self::Error> {
        let models = match (body.model, body.models) {
            (Some(_), Some(_)) => return Err("only one of model and models may be given"),
            (Some(model), None) => vec![model],
            (None, models) => models.unwrap_or_default(),
        };
        Ok(Self { models, count: body.count.unwrap_or(1), milli: body.milli.unwrap_or(limits::GPU_MILLI) })
    }
}

/// Resources of a claim that takes a whole worker of this capacity.
impl From<WorkerCapacity> for ResourceRequirements {
    fn from(WorkerCapacity { cpu_milli, memory_bytes, slots, gpu }: WorkerCapacity) -> Self {
        let gpu = gpu.map(|gpu| GpuRequest { models: vec![gpu.model], count: gpu.count, milli: limits::GPU_MILLI });
        Self { cpu_milli, memory_bytes, slots, gpu }
    }
}

impl ResourceRequirements {
    /// Checks every amount against its limit. `name`: name of the field in the request, e.g. `resources`.
    ///
    /// # Errors
    /// `Invalid` naming the field.
    pub fn check(&self, name: &str) -> Result<(), RequestError> {
        let Self { cpu_milli, memory_bytes, slots, .. } = *self;
        WorkerCapacity { cpu_milli, memory_bytes, slots, gpu: None }.check(name)?;
        let Some(GpuRequest { models, count, milli }) = &self.gpu else { return Ok(()) };
        let invalid = |field: &str, message: String| Err(RequestError::invalid(format!("{name}.gpu.{field}"), message));
        if *count == 0 || *count > limits::GPUS_MAX {
            return invalid("count", format!("must be 1 to {}", limits::GPUS_MAX));
        }
        if *milli == 0 || *milli > limits::GPU_MILLI {
            return invalid("milli", format!("must be 1 to {}: thousandths of each GPU", limits::GPU_MILLI));
        }
        if *count > 1 && *milli != limits::GPU_MILLI {
            let whole = limits::GPU_MILLI;
            return invalid("milli", format!("must be {whole} with a count above 1: only a single GPU can be shared"));
        }
        if models.len() > limits::CLAIM_MODELS_MAX {
            return invalid("models", format!("must be at most {}, got {}", limits::CLAIM_MODELS_MAX, models.len()));
        }
        for (i, model) in models.iter().enumerate() {
            check_name("gpu.model", model).map_err(|error| error.with_field_prefix(name))?;
            if models[..i].contains(model) {
                return invalid(&format!("models[{i}]"), "is given twice".into());
            }
        }
        Ok(())
    }

    /// Checks the amounts, and that at least one is requested.
    ///
    /// # Errors
    /// `Invalid` naming the field, under `resources`.
    pub fn check_non_empty(&self) -> Result<(), RequestError> {
        self.check("resources")?;
        if self.is_empty() {
            return Err(RequestError::invalid(
                "resources",
                "must not be empty: the claim holds exactly these resources of its worker",
            ));
        }
        Ok(())
    }

    /// Whether no resource is requested.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.cpu_milli == 0 && self.memory_bytes == 0 && self.slots == 0 && self.gpu.is_none()
    }

    /// Whether an empty worker of this capacity has all of it.
    #[must_use]
    pub fn fits_in(&self, capacity: &WorkerCapacity) -> bool {
        let has_gpus = |requested: &GpuRequest| {
            let has = |gpu: &GpuCapacity| {
                gpu.count >= requested.count && (requested.models.is_empty() || requested.models.contains(&gpu.model))
            };
            capacity.gpu.as_ref().is_some_and(has)
        };
        capacity.cpu_milli >= self.cpu_milli
            && capacity.memory_bytes >= self.memory_bytes
            && capacity.slots >= self.slots
            && self.gpu.as_ref().is_none_or(has_gpus)
    }
}
