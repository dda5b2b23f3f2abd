{
  # The entry that npm tools expect. The list of native sources is in native/CMakeLists.txt and only there.
  "targets": [
    {
      "target_name": "kvss",
      "type": "none",
      "actions": [
        {
          "action_name": "cmake",
          "inputs": ["native/CMakeLists.txt"],
          "outputs": ["build/native/kvss.node"],
          "action": ["node", "scripts/build-native.mjs"]
        }
      ]
    }
  ]
}
