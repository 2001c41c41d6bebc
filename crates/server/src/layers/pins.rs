//! Keeps layers that are being read from being removed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use raworc_core::ids::LayerId;

use crate::sync::lock;

/// Layers that something reads, and how often.
#[derive(Default)]
pub struct LayerPins {
    counts: Mutex<HashMap<LayerId, usize>>,
}

/// Keeps layers from being removed.
pub struct LayerPin {
    pins: Arc<LayerPins>,
    layers: Vec<LayerId>,
}

impl LayerPins {
    /// Keeps these layers from being removed.
    pub fn pin(self: &Arc<Self>, layers: impl IntoIterator<Item = LayerId>) -> LayerPin {
        let layers: Vec<LayerId> = layers.into_iter().collect();
        let mut held = lock(&self.counts);
        layers.iter().for_each(|layer| *held.entry(*layer).or_default() += 1);
        LayerPin { pins: Arc::clone(self), layers }
    }

    /// Whether anyone keeps this layer.
    pub fn is_pinned(&self, layer: LayerId) -> bool {
        lock(&self.counts).contains_key(&layer)
    }
}

impl Drop for LayerPin {
    fn drop(&mut self) {
        let mut held = lock(&self.pins.counts);
        for layer in &self.layers {
            if let Some(count) = held.get_mut(layer) {
                *count -= 1;
                if *count == 0 {
                    held.remove(layer);
                }
            }
        }
    }
}
