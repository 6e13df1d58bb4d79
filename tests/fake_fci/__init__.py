"""A fake Panda control unit on loopback: research interface version 5, gripper interface version 3."""
