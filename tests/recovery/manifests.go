package main

import (
	"fmt"

	"stillpoint.io/stillpoint/tests/cluster/bed"
)

// exportClass is the VolumeSnapshotClass whose snapshots the driver exports.
func exportClass(storage bed.Storage) string { return string(storage) + "-exports" }

// lost is what the first cluster has beside its applications.
func lost() string {
	return fmt.Sprintf(lostManifest, exportClass(lostStorage), lostStorage.Driver(), exported)
}

// told is all that the second cluster is told.
func told() string {
	return fmt.Sprintf(newManifest, lostStorage, newStorage, lostStorage.Driver(), newStorage.Driver(), exportClass(lostStorage), exportClass(newStorage))
}

// lostManifest has a class by which the driver exports its snapshots, of a name
// and a driver, and the rule that gives it to the backups of one schedule.
const lostManifest = `
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotClass
metadata:
  name: %[1]s
driver: %[2]s
deletionPolicy: Delete
parameters: {export: s3, delete-local: "true"}
---
apiVersion: v1
kind: ConfigMap
metadata:
  namespace: velero
  name: stillpoint
  labels: {velero.io/plugin-config: "", stillpoint.io/stillpoint: Configuration}
data:
  config.yaml: |
    version: v1
    drivers:
    - name: %[2]s
      exports:
        when: [{parameter: export, value: s3}]
    snapshotClasses:
    - match:
        drivers: [%[2]s]
        backups:
          matchLabels: {velero.io/schedule-name: %[3]s}
      class: %[1]s
`

// newManifest has a class for exports, and the maps: what the first cluster calls
// its StorageClass and its VolumeSnapshotClass and what the second does, likewise
// the drivers, and the classes for exports.
const newManifest = `
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotClass
metadata:
  name: %[6]s
driver: %[4]s
deletionPolicy: Delete
parameters: {export: s3, delete-local: "true"}
---
apiVersion: v1
kind: ConfigMap
metadata:
  namespace: velero
  name: change-storage-class
  labels: {velero.io/plugin-config: "", velero.io/change-storage-class: RestoreItemAction}
data:
  %[1]s: %[2]s
---
apiVersion: v1
kind: ConfigMap
metadata:
  namespace: velero
  name: stillpoint
  labels: {velero.io/plugin-config: "", stillpoint.io/stillpoint: Configuration}
data:
  config.yaml: |
    version: v1
    drivers:
    - name: %[4]s
      exports:
        when: [{parameter: export, value: s3}]
    restore:
      drivers:
      - {from: %[3]s, to: %[4]s}
      snapshotClasses:
      - {from: %[1]s, to: %[2]s}
      - {from: %[5]s, to: %[6]s}
`
