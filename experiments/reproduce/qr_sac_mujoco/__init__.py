"""QR-SAC and SAC on brax's locomotion tasks, beside brax's own SAC and Sony's published figures."""
