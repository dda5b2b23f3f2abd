{
  # The entry that npm tools expect. The list of native sources is in native/CMakeLists.txt and only there.
  "targets": [
    {
      "target_name": "kvss",
      "type": "none",
      "actions": [
        {
          "action_name": "cmake",
          "inputs": ["<(module_root_dir)/native/CMakeLists.txt"],
          "outputs": ["<(module_root_dir)/build/native/kvss.node"],
          "action": ["node", "<(module_root_dir)/scripts/build-native.mjs"]
        }
      ]
    }
  ]
}
