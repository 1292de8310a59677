// Package velero holds everything that Stillpoint knows about the inside of
// Velero: behaviour that Velero does not export and that the plugins must match,
// such as which objects a backup includes, which defaults the server applies and
// what a DataUpload contains. Where Velero exports a function that can be called
// without a server, this package calls it.
//
// The package reads no Stillpoint configuration and makes no decision. The rooms
// above it (decision, group, around, location, check, restore) ask it what Velero
// would do.
//
// # Copied facts
//
// TestContract reads this table and the source of the Velero module in use. Each row
// has Stillpoint's function, Velero's declaration, and the hash of that declaration
// or a literal in it. After an upgrade of Velero the test names every declaration
// that changed: compare it with Stillpoint's function, and put the new hash here.
//
//	Filters.Excludes          pkg/backup/item_backupper.go itemBackupper.itemInclusionChecks                                                5a69ee87
//	Filters.Collects          pkg/backup/item_collector.go itemCollector.getResourceItems                                                   395d36bd
//	Filters.Needed            pkg/util/actionhelpers/pod_helper.go RelatedItemsForPod                                                       dabcf028
//	Filters.of                pkg/backup/request.go Request.GetNamespaceFilter                                                              b19037a3
//	filtersByKind             pkg/backup/backup.go resolveClusterScopedFilterPolicy                                                         43e97c36
//	filtersByKind             pkg/backup/backup.go resolveNamespacedFilterPolicies                                                          377f8972
//	document                  internal/resourcepolicies/resource_policies.go ResourcePolicies                                               35758777
//	document                  internal/resourcepolicies/resource_policies.go NamespacedFilterPolicy                                         bd0c992c
//	document                  internal/resourcepolicies/resource_policies.go ClusterScopedFilterPolicy                                      d67fcbf8
//	resourceFilter            internal/resourcepolicies/resource_policies.go ResourceFilter                                                 13fba160
//	labelSelector.parse       internal/resourcepolicies/resource_policies.go SelectorFromPolicyLabelSelector                                58d0b199
//	Server.Complete           pkg/controller/backup_controller.go backupReconciler.prepareBackupRequest                                     c278fe2d
//	PollInterval              pkg/util/csi/volume_snapshot.go WaitUntilVSCHandleIsReady                                                     472d4916
//	NewDataUpload             pkg/backup/actions/csi/pvc_action.go newDataUpload                                                            a0cd8f64
//	UploadOperation           pkg/backup/actions/csi/pvc_action.go pvcBackupItemAction.Execute                                              0bb44483
//	BuiltInMover              pkg/datamover/util.go IsBuiltInUploader                                                                       5282f880
//	DownloadOperation         pkg/restore/actions/csi/pvc_action.go pvcRestoreItemAction.Execute                                            3bde8a2c
//	DownloadOperation         pkg/restore/actions/csi/pvc_action.go newDataDownload                                                         2012ef6b
//	TagBackup                 pkg/backup/item_backupper.go itemBackupper.takePVSnapshot                                                     "velero.io/backup"
//	TagVolume                 pkg/backup/item_backupper.go itemBackupper.takePVSnapshot                                                     "velero.io/pv"
//	CredentialsFile           internal/volume/snapshotlocation.go UpdateVolumeSnapshotLocationWithCredentialConfig                          "credentialsFile"
//	OriginalVolume            pkg/restore/restore.go                                                                                        "velero.io/original-pv-name"
//	ChangeStorageClass        pkg/cmd/server/plugin/plugin.go                                                                               "velero.io/change-storage-class"
//	StorageProvisioner        pkg/restore/actions/pvc_action.go                                                                             "volume.kubernetes.io/storage-provisioner"
//
// Facts that other packages use in the place that needs them:
//
//	snapshot: New             pkg/backup/actions/csi/pvc_action.go pvcBackupItemAction.createVolumeSnapshot                                 bd21042f
//	group: claim of a snapshot  pkg/backup/actions/csi/pvc_action.go pvcBackupItemAction.Execute                                              0bb44483
//	location: calls           pkg/backup/item_backupper.go itemBackupper.takePVSnapshot                                                     1cebb455
//	upload: copies of a mover  pkg/exposer/csi_snapshot.go csiSnapshotExposer.createBackupVS                                                 e307d6c6
//	upload: copies of a mover  pkg/exposer/csi_snapshot.go csiSnapshotExposer.createBackupVSC                                                3baf5567
//	upload: progress          pkg/backup/actions/csi/pvc_action.go pvcBackupItemAction.Progress                                             fb825511
//	cleanup: renamed drivers  internal/delete/actions/csi/volumesnapshotcontent_action.go volumeSnapshotContentDeleteItemAction.Execute     c004bf73
//	restore: claims           pkg/restore/actions/csi/pvc_action.go pvcRestoreItemAction.Execute                                            3bde8a2c
//	restore: claims not moved  pkg/restore/actions/csi/pvc_action.go getDataUploadResult                                                     0844f226
//	restore: reserved volumes  internal/volume/volumes_information.go BackupVolumesInformation.generateVolumeInfoForCSIVolumeSnapshot        5186db84
//	quiesce: hooks            internal/hook/item_hook_handler.go                                                                            "hook.backup.velero.io/command"
package velero
