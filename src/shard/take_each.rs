//! Emptying a vector that nearly always has one element.

/// Takes the elements in order and keeps the allocation. A single element is popped, which costs a third of a drain.
#[inline]
pub fn take_each<T>(elements: &mut Vec<T>, mut take: impl FnMut(T)) {
    match elements.len() {
        0 => {}
        1 => {
            if let Some(element) = elements.pop() {
                take(element);
            }
        }
        _ => elements.drain(..).for_each(&mut take),
    }
}

#[cfg(test)]
mod tests {
    use super::take_each;

    #[test]
    fn elements_are_taken_in_order_and_the_allocation_stays() {
        for len in 0..4 {
            let mut elements = Vec::with_capacity(8);
            elements.extend(0..len);
            let mut taken = Vec::new();
            take_each(&mut elements, |element| taken.push(element));
            assert_eq!((taken, elements.len(), elements.capacity()), ((0..len).collect(), 0, 8));
        }
    }
}
