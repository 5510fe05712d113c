//! Vectors with one amount of each resource, and their arithmetic.

use std::iter::Sum;
use std::ops::{Add, Mul, Shr};

use super::{ResourceRequirements, WorkerCapacity};
use crate::limits;

/// Amounts of all resources: of a worker, of a claim, or of several together. GPUs are counted in thousandths,
/// whatever their model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResourceVector<T = u64> {
    /// Amount in thousandths of cores.
    pub cpu_milli: T,
    /// Amount in bytes of memory.
    pub memory_bytes: T,
    /// Number of slots, in the unit of the pool.
    pub slots: T,
    /// Amount in thousandths of GPUs.
    pub gpu_milli: T,
}

impl<T> ResourceVector<T> {
    /// Amounts in the order of the fields.
    pub fn to_array(self) -> [T; 4] {
        [self.cpu_milli, self.memory_bytes, self.slots, self.gpu_milli]
    }

    /// References to the amounts.
    pub const fn each_ref(&self) -> ResourceVector<&T> {
        let Self { cpu_milli, memory_bytes, slots, gpu_milli } = self;
        ResourceVector { cpu_milli, memory_bytes, slots, gpu_milli }
    }

    /// Results of `f` for each amount.
    pub fn map<U>(self, mut f: impl FnMut(T) -> U) -> ResourceVector<U> {
        let Self { cpu_milli, memory_bytes, slots, gpu_milli } = self;
        let (cpu_milli, memory_bytes) = (f(cpu_milli), f(memory_bytes));
        ResourceVector { cpu_milli, memory_bytes, slots: f(slots), gpu_milli: f(gpu_milli) }
    }

    /// Results of `f` for each amount and that of `other`.
    pub fn zip_map<U, V>(self, other: ResourceVector<U>, mut f: impl FnMut(T, U) -> V) -> ResourceVector<V> {
        ResourceVector {
            cpu_milli: f(self.cpu_milli, other.cpu_milli),
            memory_bytes: f(self.memory_bytes, other.memory_bytes),
            slots: f(self.slots, other.slots),
            gpu_milli: f(self.gpu_milli, other.gpu_milli),
        }
    }
}

impl<T: Ord> ResourceVector<T> {
    /// Larger amount of each resource. No single worker needs to have all of them.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        self.zip_map(other, T::max)
    }

    /// Whether no amount exceeds that of `available`.
    pub fn fits_in(self, available: Self) -> bool {
        self.cpu_milli <= available.cpu_milli
            && self.memory_bytes <= available.memory_bytes
            && self.slots <= available.slots
            && self.gpu_milli <= available.gpu_milli
    }
}

impl<T: From<u16> + Add<Output = T> + Mul<Output = T> + Shr<u32, Output = T>> ResourceVector<T> {
    /// Amounts in one number: thousandths of cores, where 4 MiB of memory count as one, a slot as 1,000 and a
    /// thousandth of a GPU as 16 (one GPU goes with 16 cores and 4 GiB with one core, as clouds sell them). A `u64`
    /// holds that of one worker, whose amounts are at most [`limits::AMOUNT_MAX`]; sums need a `u128`.
    pub fn weight(self) -> T {
        self.cpu_milli + (self.memory_bytes >> 22) + self.slots * T::from(1_000) + self.gpu_milli * T::from(16)
    }
}

impl ResourceVector {
    /// Sum of each amount, at most `u64::MAX`.
    #[must_use]
    pub fn saturating_add(self, more: Self) -> Self {
        self.zip_map(more, u64::saturating_add)
    }

    /// Difference of each amount; none if one would be negative.
    #[must_use]
    pub fn checked_sub(self, less: Self) -> Option<Self> {
        less.fits_in(self).then(|| self.zip_map(less, u64::wrapping_sub))
    }
}

impl ResourceVector<u128> {
    /// Amounts of at most `u64::MAX` each.
    #[must_use]
    pub fn saturate(self) -> ResourceVector {
        self.map(|amount| u64::try_from(amount).unwrap_or(u64::MAX))
    }
}

/// Saturating sum of each amount.
impl Sum for ResourceVector {
    fn sum<I: Iterator<Item = Self>>(vectors: I) -> Self {
        vectors.fold(Self::default(), Self::saturating_add)
    }
}

impl From<&WorkerCapacity> for ResourceVector {
    fn from(capacity: &WorkerCapacity) -> Self {
        let WorkerCapacity { cpu_milli, memory_bytes, slots, ref gpu } = *capacity;
        let gpu_milli = gpu.as_ref().map_or(0, |gpu| u64::from(gpu.count) * u64::from(limits::GPU_MILLI));
        Self { cpu_milli, memory_bytes, slots, gpu_milli }
    }
}

impl From<&ResourceRequirements> for ResourceVector {
    fn from(requested: &ResourceRequirements) -> Self {
        let ResourceRequirements { cpu_milli, memory_bytes, slots, ref gpu } = *requested;
        let gpu_milli = gpu.as_ref().map_or(0, |gpu| u64::from(gpu.count) * u64::from(gpu.milli));
        Self { cpu_milli, memory_bytes, slots, gpu_milli }
    }
}

/// Capacity without GPUs, because a vector does not know their model.
impl From<ResourceVector> for WorkerCapacity {
    fn from(ResourceVector { cpu_milli, memory_bytes, slots, .. }: ResourceVector) -> Self {
        Self { cpu_milli, memory_bytes, slots, gpu: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Vectors with small amounts, large ones, and the largest.
    fn vector() -> impl Strategy<Value = ResourceVector> {
        let amount = || prop_oneof![0..4_u64, any::<u64>(), Just(u64::MAX)];
        (amount(), amount(), amount(), amount()).prop_map(|(cpu_milli, memory_bytes, slots, gpu_milli)| {
            ResourceVector { cpu_milli, memory_bytes, slots, gpu_milli }
        })
    }

    proptest! {
        #[test]
        fn vectors_calculate_like_their_amounts(vectors in prop::collection::vec(vector(), 2..5)) {
            let [first, second] = [vectors[0], vectors[1]];
            let wide = |vector: ResourceVector| vector.to_array().map(u128::from);
            let pairs = || wide(first).into_iter().zip(wide(second));
            let fits = pairs().all(|(first, second)| first <= second);
            prop_assert_eq!(first.fits_in(second), fits);
            let larger: Vec<_> = pairs().map(|(first, second)| if first > second { first } else { second }).collect();
            prop_assert_eq!(wide(first.max(second)).to_vec(), larger);
            let remaining = fits.then(|| pairs().map(|(first, second)| second - first).collect::<Vec<_>>());
            prop_assert_eq!(second.checked_sub(first).map(|remaining| wide(remaining).to_vec()), remaining);
            let sums = [0, 1, 2, 3].map(|i| vectors.iter().map(|vector| wide(*vector)[i]).sum::<u128>());
            let most = u128::from(u64::MAX);
            prop_assert_eq!(wide(vectors.iter().copied().sum()), sums.map(|sum| if sum > most { most } else { sum }));
            let add = |sum: ResourceVector<u128>, more: &ResourceVector| sum.zip_map(*more, |sum, more| sum + u128::from(more));
            let exact = vectors.iter().fold(ResourceVector::default(), add);
            prop_assert_eq!(exact.to_array(), sums);
            prop_assert_eq!(exact.saturate(), vectors.iter().copied().sum());
            let [cpu, memory, slots, gpus] = sums;
            prop_assert_eq!(exact.weight(), cpu + memory / (4 << 20) + 1_000 * slots + 16 * gpus);
        }
    }

    #[test]
    fn gpus_count_in_thousandths_of_any_model() {
        let capacity: WorkerCapacity = serde_json::from_str(r#"{"slots":3,"gpu":{"model":"a","count":2}}"#).unwrap();
        let requested: ResourceRequirements = serde_json::from_str(r#"{"slots":3,"gpu":{"milli":500}}"#).unwrap();
        let (total, part) = (ResourceVector::from(&capacity), ResourceVector::from(&requested));
        assert_eq!((total.to_array(), part.to_array()), ([0, 0, 3, 2_000], [0, 0, 3, 500]));
        assert_eq!(WorkerCapacity::from(total), WorkerCapacity { gpu: None, ..capacity });
    }
}
